//! Builds the programs that the e2e tests run (all, or those named) and prints where they are.

use std::io::{Write as _, stdout};

use anyhow::{Context, Result};
use pointsman_e2e::{Program, Toolchain};
use pointsman_test_kernel::program;

fn main() -> Result<()> {
    let toolchain = Toolchain::locate()?;
    let mut programs = Vec::new();
    let mut kernel = false;
    for name in std::env::args().skip(1) {
        if name == program::NAME {
            kernel = true;
            continue;
        }
        let known = Program::ALL.map(Program::name).join(", ");
        let wanted = Program::ALL.into_iter().find(|program| program.name() == name);
        programs.push(
            wanted.with_context(|| format!("no program {name:?}; there are: {known}, {}", program::NAME))?,
        );
    }
    if programs.is_empty() && !kernel {
        programs.extend(Program::ALL);
        kernel = true;
    }
    for program in programs {
        writeln!(stdout(), "{}", toolchain.program(program)?.display())?;
    }
    if kernel {
        writeln!(stdout(), "{}", program::kernel()?.display())?;
    }
    Ok(())
}
