//! Anonymous network namespaces: held by a descriptor, so nothing is left after a test, however it ends.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; clones are the same one.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("a network namespace of the test's own needs root: run the tests as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self(Arc::new(file));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside.
    pub fn enter(&self) {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("entering a namespace needs root");
    }

    /// Runs a program inside, gives its output; fails when it fails.
    pub fn program(&self, words: &[&str], input: &str) -> String {
        let (ok, out, err) = self.try_program(words, input);
        assert!(ok, "{words:?} failed: {err}\n{input}");
        out
    }

    /// The same, with success, output and errors as values.
    pub fn try_program(&self, words: &[&str], input: &str) -> (bool, String, String) {
        self.run(|| {
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .env("XTABLES_LOCKFILE", "/run/pointsman-test-programs.lock")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| {
                    panic!(
                        "{} cannot be run ({error}): apt-get install iptables iproute2",
                        words[0]
                    )
                });
            let mut stdin = child.stdin.take().unwrap();
            // A program that fails early closes its end.
            let _ = stdin.write_all(input.as_bytes());
            drop(stdin);
            let output = child.wait_with_output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            (output.status.success(), text(output.stdout), text(output.stderr))
        })
    }

    /// Runs lines of `ip` commands.
    pub fn ip(&self, lines: &str) {
        self.program(&["ip", "-batch", "-"], lines);
    }

    /// Writes a value below /proc/sys/net.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// Makes it forward packets, and refuse as many as it has to. The kernel refuses at most once a second and peer
    /// otherwise, and 50 at once altogether (`icmp_global_allow`): a refusal that is not sent looks like a packet that was
    /// dropped.
    pub fn become_router(&self) {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            self.sysctl(name, "1");
        }
        for name in ["ipv4/icmp_ratemask", "ipv6/icmp/ratemask"] {
            self.sysctl(name, "0");
        }
    }

    /// Joins this namespace to another by a pair of interfaces. IPv6 addresses are usable at once.
    pub fn join(&self, name: &str, other: &Self, other_name: &str) {
        self.program(
            &[
                "ip",
                "link",
                "add",
                name,
                "type",
                "veth",
                "peer",
                "name",
                other_name,
                "netns",
                &format!(
                    "/proc/{}/fd/{}",
                    std::process::id(),
                    std::os::fd::AsRawFd::as_raw_fd(&*other.0)
                ),
            ],
            "",
        );
        for (namespace, name) in [(self, name), (other, other_name)] {
            namespace.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
            namespace.ip(&format!("link set {name} up"));
        }
    }
}
