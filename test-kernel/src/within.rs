//! Moves a whole test binary into the test kernel.

use std::{env, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{INSIDE, machine};

/// Makes this test binary run in the test kernel: one line at the top of a file in `tests/`. Its tests stay ordinary ones, and
/// so do filters, `--nocapture` and the like; `--list` lists without booting.
///
/// The line runs before `main`, which libtest has taken. Outside it replaces the process by this crate's own program
/// (`test-kernel`), which boots the kernel, runs the binary in it with the same arguments and environment, and ends as it ends.
///
/// Packages of this workspace whose programs the tests run are named, so that they are built before: in the kernel there is
/// neither the memory nor the processors to. `run_inside!(by "/a/program")` takes another program than `test-kernel`, which is given
/// the command behind `--`.
#[macro_export]
macro_rules! run_inside {
    (by $program:expr) => {
        $crate::run_inside!(@ $crate::within::enter_by($program));
    };
    ($($package:literal),*) => {
        $crate::run_inside!(@ $crate::within::enter(&[$($package),*]));
    };
    (@ $enter:expr) => {
        #[allow(
            unsafe_code,
            reason = "the only place before libtest's main; what runs there is an exec, and inside nothing"
        )]
        #[used]
        #[unsafe(link_section = ".init_array")]
        static RUN_INSIDE: extern "C" fn() = {
            extern "C" fn enter() {
                $enter;
            }
            enter
        };
    };
}

/// Whether this process runs in the test kernel.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// What [`run_inside!`](crate::run_inside) does. Returns inside and where there is nothing to run.
pub fn enter(packages: &[&str]) {
    enter_with(|| {
        let build = packages.iter().flat_map(|package| ["--build", *package]);
        leave(&machine::command_line()?, build)
    });
}

/// The same by another program.
pub fn enter_by(program: &str) {
    enter_with(|| leave(Path::new(program), []));
}

fn enter_with(leave: impl FnOnce() -> Result<()>) {
    let only_asks = |argument| argument == "--list" || argument == "--help" || argument == "-h";
    // Inside there is always a program to go on with: nothing is sent there a second time.
    let entered = match (is_inside(), env::args_os().any(only_asks)) {
        (true, _) => has_ipvs(),
        (false, true) => Ok(()),
        (false, false) => leave(),
    };
    if let Err(error) = entered {
        eprintln!("these tests run in the test kernel: {error:#}");
        std::process::exit(1);
    }
}

fn has_ipvs() -> Result<()> {
    let listed = Path::new("/proc/net/ip_vs");
    ensure!(
        listed.exists(),
        "{INSIDE} is set, but this kernel has no IPVS: it is set by the test kernel only"
    );
    Ok(())
}

fn leave<'a>(program: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let error = Command::new(program)
        .args(arguments)
        .arg("--")
        .arg(env::current_exe().context("asking which program this is")?)
        .args(env::args_os().skip(1))
        .exec();
    Err(error).with_context(|| format!("running {}", program.display()))
}
