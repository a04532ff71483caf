//! Flow tables as data: `tests/flows/*.yaml` say which objects there are, which packets are sent, and what becomes of
//! them. `tests/flows/README.md` describes them. Two runners share all of this: the model's `trace`, and packets.

pub mod families;
pub mod file;
pub mod packets;
pub mod state;
pub mod words;
pub mod world;

use std::path::PathBuf;

use file::FlowFile;
use state::{Moment, State};

/// A file with its name.
pub struct Named {
    pub name: String,
    pub file: FlowFile,
}

/// All files, or those that `FLOWS` names (without `.yaml`, separated by commas). A file that cannot be read fails.
pub fn all() -> Vec<Named> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/flows");
    let chosen = std::env::var("FLOWS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    let mut found: Vec<Named> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| chosen.is_empty() || chosen.contains(&name.as_str()))
        .map(|(name, path)| {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = file::read(&name, &text).unwrap_or_else(|error| panic!("{error}"));
            Named { name, file }
        })
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    for name in &chosen {
        assert!(
            found.iter().any(|file| file.name == *name),
            "FLOWS={name}: there is no {}/{name}.yaml",
            folder.display()
        );
    }
    assert!(!found.is_empty(), "{} has no flow file", folder.display());
    found
}

/// Goes through all moments of a file: each case from the file's objects on, and the steps behind it. `see` looks at each
/// and gives what is wrong. Gives all that was wrong, each with file, families and case.
pub fn walk(
    named: &Named,
    state: &mut State,
    mut see: impl FnMut(&mut State, &Moment) -> Vec<String>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let families = state.families;
    let mut packets = 0;
    for case in &named.file.cases {
        let place = |step: &str| format!("{}.yaml ({families}): {step}", named.name);
        let steps = std::iter::once(case).chain(&case.then);
        state.begin(&named.file);
        for (at, step) in steps.enumerate() {
            let title = if at == 0 {
                case.name.clone()
            } else {
                format!("{}, then {}", case.name, step.name)
            };
            match state.take(step) {
                Ok(moment) => {
                    packets += moment.flows.len();
                    let found = see(state, &moment);
                    wrong.extend(found.into_iter().map(|what| format!("{}: {what}", place(&title))));
                }
                Err(error) => wrong.push(format!("{}: {error}", place(&title))),
            }
        }
    }
    if packets != named.file.count {
        wrong.push(format!(
            "{}.yaml: it says that it has {} packets, and has {packets}",
            named.name, named.file.count
        ));
    }
    wrong
}
