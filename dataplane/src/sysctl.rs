//! Kernel parameters (`sysctl`): set while they are wanted, put back afterwards.
//!
//! What a parameter was before is remembered in a file before the first write, so that also the process after
//! this one can put it back. `decision` says what has to be done (pure), `state` is the memory, `proc` reads and
//! writes the kernel, and [`Sysctls`] does all of it in an order that survives being killed in between.
//!
//! `/proc/sys/net` is the network namespace of the *thread* that opens a file in it: call from a thread that is
//! in the node's namespace.

mod decision;
mod error;
mod name;
mod outcome;
mod proc;
mod state;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

use decision::{Decision, Release};
pub use error::Error;
pub use name::{BadName, Name};
pub use outcome::{Change, Failure, Left, Outcome, Why};
use proc::ProcSys;
pub use state::{Corrupt, State};
use state::{Entry, StateFile};
pub use value::Wanted;

/// The node's parameters, and the memory of what they were.
///
/// ```no_run
/// use pointsman_dataplane::sysctl::{Sysctls, Wanted};
///
/// let mut sysctls = Sysctls::new("/proc/sys".into(), "/var/lib/pointsman/sysctls".into());
/// let wanted = [("net.ipv4.ip_forward".to_owned(), Wanted::from("1"))].into();
/// for failure in sysctls.apply(&wanted).failed {
///     eprintln!("{failure}");
/// }
/// sysctls.restore_all();
/// ```
#[derive(Debug)]
pub struct Sysctls {
    proc: ProcSys,
    file: StateFile,
    /// What is remembered; absent until the file has been read.
    state: Option<State>,
    /// What the file holds, as far as this process knows.
    stored: State,
    /// Which boot of the machine this is.
    boot: Option<String>,
}

/// A write that is to be done.
struct Write {
    name: Name,
    before: String,
    value: String,
    why: Why,
}

impl Sysctls {
    /// Reads and writes below `proc_root` (normally `/proc/sys`, or wherever the host's is mounted writable) and
    /// remembers in `state_file`. Touches neither before the first [`Sysctls::apply`].
    #[must_use]
    pub fn new(proc_root: PathBuf, state_file: PathBuf) -> Self {
        Self {
            proc: ProcSys::new(proc_root),
            file: StateFile::new(state_file),
            state: None,
            stored: State::default(),
            boot: proc::boot_id(),
        }
    }

    /// Brings the kernel to `wanted`, by name: writes what differs, and puts back what is no longer wanted.
    ///
    /// No failure stops the rest. A parameter that was changed by somebody else is put to the wanted value again
    /// ([`Why::Drift`]); one that is no longer wanted but was changed since is left alone ([`Outcome::left`]).
    /// `net.netfilter.nf_conntrack_max` is not lowered to or below the number of connections that are tracked at
    /// the moment, because the kernel would refuse every new one (`__nf_conntrack_alloc`): that is a failure
    /// until there are fewer. What is wanted for good ([`Wanted::ForGood`]) is not remembered and so not put back. A call that finds everything in place writes nothing, not even the state file.
    pub fn apply(&mut self, wanted: &BTreeMap<String, Wanted>) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(mut state) = self.load(&mut outcome) else {
            // Without the memory nothing may be written: what was found could be lost for good.
            for name in wanted.keys() {
                outcome.fail(
                    name,
                    Error::NotRemembered {
                        file: self.file.path().to_owned(),
                    },
                );
            }
            return outcome;
        };

        let writes = self.look(wanted, &mut state, &mut outcome);
        let restores = self.look_for_unwanted(wanted, &mut state, &mut outcome);
        self.store(&state, &mut outcome);

        for write in writes {
            if self.stored.get(&write.name) == state.get(&write.name) {
                self.write(write, &mut state, &mut outcome);
            } else {
                let file = self.file.path().to_owned();
                outcome.fail(write.name.as_str(), Error::NotRemembered { file });
            }
        }
        for restore in restores {
            self.restore(restore, &mut state, &mut outcome);
        }
        self.store(&state, &mut outcome);
        self.state = Some(state);
        outcome
    }

    /// Puts back everything that is remembered, for when no policy is left. What could not be put back stays
    /// remembered for the next call.
    pub fn restore_all(&mut self) -> Outcome {
        self.apply(&BTreeMap::new())
    }

    /// The remembered state, from the file the first time.
    fn load(&mut self, outcome: &mut Outcome) -> Option<State> {
        if let Some(state) = self.state.take() {
            return Some(state);
        }
        match self.file.read() {
            Ok(state) => self.stored = state,
            Err(error) => {
                let usable = matches!(error, Error::Corrupt { .. });
                outcome.state = Some(error);
                if !usable {
                    return None;
                }
            }
        }
        let mut state = self.stored.clone();
        // A reboot has undone what was written, and what was found then says nothing about this boot.
        state.begin_boot(self.boot.as_deref());
        Some(state)
    }

    /// Compares what is wanted with the kernel. Enters what it finds into `state`; returns what is to be written.
    fn look(
        &self,
        wanted: &BTreeMap<String, Wanted>,
        state: &mut State,
        outcome: &mut Outcome,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        for (name, wanted) in wanted {
            let checked = Name::parse(name).map_err(Error::from).and_then(|name| {
                wanted.check()?;
                let present = self.proc.read(&name)?;
                Ok((name, present))
            });
            let (name, present) = match checked {
                Ok(found) => found,
                Err(error) => {
                    outcome.fail(name, error);
                    continue;
                }
            };
            let decision = decision::decide(&name, &present, state.get(&name), wanted);
            if let Wanted::ForGood(_) = wanted {
                state.forget(&name);
            } else {
                state.remember(&name, &present).asked = wanted.text();
            }
            if let Decision::Write { value, why } = decision {
                writes.push(Write {
                    name,
                    before: present,
                    value,
                    why,
                });
            }
        }
        writes.sort_by(|a, b| decision::order(&a.name).cmp(&decision::order(&b.name)));
        writes
    }

    /// Looks at what is remembered but no longer wanted. Forgets what needs no write; returns what does.
    fn look_for_unwanted(
        &self,
        wanted: &BTreeMap<String, Wanted>,
        state: &mut State,
        outcome: &mut Outcome,
    ) -> Vec<Write> {
        let unwanted: Vec<(Name, Entry)> = state
            .entries()
            .filter(|(name, _)| !wanted.contains_key(name.as_str()))
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        let mut restores = Vec::new();
        for (name, entry) in unwanted {
            let present = match self.proc.read(&name) {
                Ok(present) => present,
                // Its module was unloaded: with it went the value, and there is nothing to put back.
                Err(Error::Missing { .. }) => {
                    state.forget(&name);
                    continue;
                }
                Err(error) => {
                    outcome.fail(name.as_str(), error);
                    continue;
                }
            };
            match decision::release(&present, &entry) {
                Release::Forget => state.forget(&name),
                Release::Leave => {
                    state.forget(&name);
                    outcome.left.push(Left {
                        name,
                        present,
                        found: entry.found,
                    });
                }
                Release::Restore => {
                    restores.push(Write {
                        name,
                        before: present,
                        value: entry.found,
                        why: Why::Restored,
                    });
                }
            }
        }
        restores.sort_by(|a, b| decision::order(&b.name).cmp(&decision::order(&a.name)));
        restores
    }

    fn write(&self, write: Write, state: &mut State, outcome: &mut Outcome) {
        let Write {
            name,
            before,
            value,
            why,
        } = write;
        match self.put(&name, &before, &value) {
            Ok(now) => {
                state.holds(&name, &now);
                if decision::is_accepted(&name, &value, &now) {
                    outcome.changed.push(Change {
                        name,
                        before,
                        wanted: value,
                        now,
                        why,
                    });
                } else {
                    outcome.fail(name.as_str(), Error::Different { wanted: value, now });
                }
            }
            Err(error) => outcome.fail(name.as_str(), error),
        }
    }

    fn restore(&self, write: Write, state: &mut State, outcome: &mut Outcome) {
        let Write {
            name,
            before,
            value,
            why,
        } = write;
        match self.put(&name, &before, &value) {
            Ok(now) if value::same(&now, &value) => {
                state.forget(&name);
                outcome.changed.push(Change {
                    name,
                    before,
                    wanted: value,
                    now,
                    why,
                });
            }
            Ok(now) => outcome.fail(name.as_str(), Error::Different { wanted: value, now }),
            // What cannot be written here never was: its value is what somebody has set on the host.
            Err(Error::OtherNamespace) => {
                state.forget(&name);
                outcome.left.push(Left {
                    name,
                    present: before,
                    found: value,
                });
            }
            Err(error) => outcome.fail(name.as_str(), error),
        }
    }

    /// Writes a value, and returns what the kernel holds then.
    fn put(&self, name: &Name, before: &str, value: &str) -> Result<String, Error> {
        if let Some(connections) = self.too_many(name, before, value) {
            return Err(Error::InUse {
                present: before.to_owned(),
                wanted: value.to_owned(),
                connections,
            });
        }
        self.proc.write(name, value)?;
        self.proc.read(name)
    }

    /// The number of tracked connections, when it forbids to change `nf_conntrack_max` to `value`.
    fn too_many(&self, name: &Name, before: &str, value: &str) -> Option<u64> {
        if name.as_str() != decision::CONNTRACK_MAX {
            return None;
        }
        let count = Name::parse(decision::CONNTRACK_COUNT).ok()?;
        let connections = self.proc.read(&count).ok()?.parse().ok()?;
        decision::chokes(before.parse().ok()?, value.parse().ok()?, connections).then_some(connections)
    }

    fn store(&mut self, state: &State, outcome: &mut Outcome) {
        if *state == self.stored {
            return;
        }
        match self.file.write(state) {
            Ok(()) => self.stored = state.clone(),
            Err(error) => outcome.state = Some(error),
        }
    }
}
