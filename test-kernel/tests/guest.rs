//! Whether programs run in the test kernel as they do elsewhere, and whether nothing of it is left. Builds the kernel when it is
//! missing, which takes minutes; e2e/packages.sh installs what that needs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends by failing")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use pointsman_test_kernel::{Kernel, Options, Streams};

const LIMIT: Duration = Duration::from_secs(60);

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn text(output: &Output) -> (&str, &str) {
    (
        std::str::from_utf8(&output.stdout).unwrap(),
        std::str::from_utf8(&output.stderr).unwrap(),
    )
}

#[test]
fn programs_run_as_elsewhere() {
    let kernel = Kernel::boot(&Options::default()).unwrap();
    let output = kernel
        .output(
            sh("echo out; echo err >&2; echo $A; pwd; exit 3")
                .env("A", "a b")
                .current_dir("/usr"),
        )
        .unwrap();
    assert_eq!(
        (text(&output), output.status.code()),
        (("out\na b\n/usr\n", "err\n"), Some(3))
    );
    let other = kernel.output(&sh("uname -r; cat /proc/net/ip_vs")).unwrap();
    let said = text(&other).0;
    assert!(
        said.starts_with("6.12.") && said.contains("IP Virtual Server"),
        "{said}"
    );

    // More than a line of any kind holds, in arguments, in the environment, as input and as output.
    let long = "x".repeat(100_000);
    let output = kernel
        .output(
            sh("printf %s \"$1$B\" | wc -c")
                .arg("sh")
                .arg(&long)
                .env("B", &long),
        )
        .unwrap();
    assert_eq!(text(&output).0.trim(), "200000");
    let counting = kernel
        .spawn(&Command::new("md5sum"), Streams::captured())
        .unwrap();
    let input: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    for part in input.chunks(50_000) {
        counting.write(part).unwrap();
    }
    counting.write(b"").unwrap();
    assert_eq!(
        text(&counting.output().unwrap()).0,
        "5c725cbc2dbbe1148159e9d9cf90648f  -\n"
    );
    let bytes = kernel
        .output(&sh("head -c 3000000 /dev/zero | tr '\\0' '\\377'"))
        .unwrap();
    assert!(bytes.stdout.len() == 3_000_000 && bytes.stdout.iter().all(|byte| *byte == 0xff));

    let missing = kernel.output(&Command::new("no-such-program")).unwrap_err();
    assert!(
        format!("{missing:#}").contains("no program no-such-program in "),
        "{missing:#}"
    );
}

#[test]
fn processes_are_signalled_and_their_output_comes_at_once() {
    let kernel = Kernel::boot(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let process = kernel
        .spawn(
            &sh("trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.05; done"),
            Streams::log(&log).unwrap(),
        )
        .unwrap();
    let deadline = Instant::now() + LIMIT;
    while fs::read_to_string(&log).unwrap() != "ready\n" {
        assert!(Instant::now() < deadline, "no output: {}", kernel.console());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(process.wait_for(Duration::from_millis(20)).unwrap(), None);
    process.kill(Signal::SIGTERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(7));
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\ntold\n");

    let asleep = kernel.spawn(&sh("exec sleep 1000"), Streams::captured()).unwrap();
    asleep.kill(Signal::SIGKILL).unwrap();
    assert_eq!(asleep.wait().unwrap().signal(), Some(9));

    // What a program leaves running ends with it, and keeps nobody waiting.
    let left = kernel.output(&sh("sleep 1000 & echo $!")).unwrap();
    let pid = text(&left).0.trim().to_owned();
    let gone = |alive: &str| {
        let script = format!("timeout 60 sh -c 'while {alive}; do sleep 0.02; done'");
        kernel.output(&sh(&script)).unwrap().status.success()
    };
    assert!(gone(&format!("test -e /proc/{pid}")), "{pid} is still there");

    // Nor does one that nobody wants any more.
    drop(kernel.spawn(&sh("exec sleep 4711"), Streams::captured()).unwrap());
    assert!(gone("pgrep -f [s]leep.4711"), "it still sleeps");
}

#[test]
fn the_machines_files_are_safe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "from the machine").unwrap();
    let shared = vec![folder.path().to_owned()];
    let kernel = Kernel::boot(&Options {
        shared,
        ..Options::default()
    })
    .unwrap();
    let script = format!(
        "cat {file}; printf 'from the guest' > {file}",
        file = file.display()
    );
    assert_eq!(text(&kernel.output(&sh(&script)).unwrap()).0, "from the machine");
    assert_eq!(fs::read_to_string(&file).unwrap(), "from the guest");

    let mark = format!("pointsman-guest-{}", std::process::id());
    for outside in ["/etc", "/usr", "/var/tmp"] {
        let output = kernel.output(&sh(&format!("touch {outside}/{mark}"))).unwrap();
        assert!(!output.status.success(), "{outside} can be written");
    }
    for own in ["/tmp", "/run", "/dev/shm"] {
        let output = kernel.output(&sh(&format!("touch {own}/{mark}"))).unwrap();
        assert!(output.status.success(), "{own}: {}", text(&output).1);
        assert!(
            !fs::exists(format!("{own}/{mark}")).unwrap(),
            "{own} is the machine's"
        );
    }
    // Its first network namespace is nobody else's, and it decides there.
    let limit = "echo 123456 > /proc/sys/net/netfilter/nf_conntrack_max";
    assert!(kernel.output(&sh(limit)).unwrap().status.success());
}

#[test]
fn a_kernel_that_panics_says_why() {
    let kernel = Kernel::boot(&Options::default()).unwrap();
    let error = kernel
        .output(&sh("echo c > /proc/sysrq-trigger; sleep 60"))
        .unwrap_err();
    let said = format!("{error:#}");
    assert!(
        said.contains("the test kernel ended") && said.contains("sysrq triggered crash"),
        "{said}"
    );
    let error = kernel.output(&sh("true")).unwrap_err();
    assert!(
        format!("{error:#}").contains("the test kernel ended"),
        "{error:#}"
    );
    let processes = group_of(&kernel);
    drop(kernel);
    assert_eq!(left_of(&processes), Vec::<String>::new());
}

#[test]
fn nothing_is_left_after_a_drop() {
    let kernel = Kernel::boot(&Options::default()).unwrap();
    let sleeper = kernel
        .spawn(&sh("sleep 1000 & sleep 1000"), Streams::captured())
        .unwrap();
    let processes = group_of(&kernel);
    assert!(processes.len() > 2, "{processes:?}");
    drop(kernel);
    assert_eq!(left_of(&processes), Vec::<String>::new());
    assert!(sleeper.wait().is_err(), "its kernel is gone");
}

/// What the next test starts and kills. It is no test of its own.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn hold_a_kernel_until_killed() {
    let kernel = Kernel::boot(&Options::default()).unwrap();
    let _sleeper = kernel.spawn(&sh("exec sleep 1000"), Streams::captured()).unwrap();
    println!("\nholding {}", group_of(&kernel).join(" "));
    thread::sleep(LIMIT);
}

#[test]
fn nothing_is_left_after_the_host_is_killed() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "hold_a_kernel_until_killed",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(holder.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    let held = lines.find_map(|line| line.strip_prefix("holding ").map(str::to_owned));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let processes: Vec<String> = held.unwrap().split(' ').map(str::to_owned).collect();
    assert!(processes.len() > 1, "{processes:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !left_of(&processes).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", left_of(&processes));
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes of a kernel, its guest's among them: they are of one group.
fn group_of(kernel: &Kernel) -> Vec<String> {
    let group = kernel.process_group().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name: the state, the parent, the group.
        let behind = stat.rsplit(')').next().unwrap_or_default();
        behind.split_whitespace().nth(2) == Some(&group)
    })
    .collect()
}

fn left_of(processes: &[String]) -> Vec<String> {
    let lives = |pid: &&String| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            // Dead and not yet reaped is dead.
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    processes.iter().filter(lives).cloned().collect()
}
