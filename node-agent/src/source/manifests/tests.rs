use tempfile::TempDir;

use super::*;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
const POLICY: &str =
    "apiVersion: pointsman.dev/v1alpha1\nkind: ProxyPolicy\nmetadata: {name: box}\nspec: {mode: IPTables}\n";

fn directory(files: &[(&str, &str)]) -> (TempDir, Reader) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let reader = Reader::new(directory.path(), "node-1");
    (directory, reader)
}

/// The events without the marks around the first list.
fn first(reader: &mut Reader) -> Vec<Event> {
    let events = reader.first().unwrap();
    events
        .into_iter()
        .filter(|e| !matches!(e, Event::ListBegins(_) | Event::ListEnds(_)))
        .collect()
}

#[test]
fn every_object_of_the_directory_is_told() {
    let node = "kind: Node\napiVersion: v1\nmetadata: {name: node-1}\nspec: {podCIDR: 10.244.1.0/24}\n";
    let ranges = "kind: ServiceCIDR\napiVersion: networking.k8s.io/v1\nmetadata: {name: all}\nspec: {cidrs: [10.96.0.0/16]}\n";
    let (_directory, mut reader) = directory(&[
        (
            "a.yaml",
            &format!("{SERVICE}---\n{node}---\n# nothing\n---\n{ranges}"),
        ),
        ("policy.yml", POLICY),
        (
            "list.json",
            r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}]}"#,
        ),
        ("notes.txt", "not: [yaml"),
    ]);
    let mut events = first(&mut reader);
    events.sort_by_key(|event| format!("{event:?}"));
    assert!(
        matches!(
            &events[..],
            [
                Event::Assignment(Some(_)),
                Event::Node(Some(_)),
                Event::Service(..),
                Event::ServiceCidr(name, _)
            ] if name == "all"
        ),
        "{events:?}"
    );
}

#[test]
fn only_what_a_changed_file_changed_is_told() {
    let (directory, mut reader) = directory(&[("a.yaml", SERVICE), ("b.yaml", POLICY)]);
    first(&mut reader);
    assert_eq!(reader.rescan().unwrap(), []);
    let other = SERVICE.replace("web", "api");
    fs::write(directory.path().join("a.yaml"), format!("{SERVICE}---\n{other}")).unwrap();
    let events = reader.rescan().unwrap();
    assert!(
        matches!(&events[..], [Event::Service(name, _)] if &*name.name == "api"),
        "{events:?}"
    );
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    let gone = reader.rescan().unwrap();
    assert_eq!(gone.len(), 2);
    assert!(
        gone.iter()
            .all(|event| matches!(event, Event::Service(_, parsed) if parsed.object.is_none()))
    );
}

#[test]
fn an_object_that_moves_to_another_file_stays() {
    let (directory, mut reader) = directory(&[("a.yaml", SERVICE)]);
    first(&mut reader);
    fs::write(directory.path().join("b.yaml"), SERVICE).unwrap();
    reader.rescan().unwrap();
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert_eq!(reader.rescan().unwrap(), []);
}

#[test]
fn a_file_that_breaks_keeps_what_it_said() {
    let (directory, mut reader) = directory(&[("a.yaml", SERVICE)]);
    first(&mut reader);
    for broken in [
        "kind: [",
        "kind: Service\nmetadata: {name: x}\n",
        &format!("{SERVICE}---\n{SERVICE}"),
    ] {
        fs::write(directory.path().join("a.yaml"), broken).unwrap();
        assert_eq!(reader.rescan().unwrap(), [], "{broken}");
    }
    fs::write(
        directory.path().join("a.yaml"),
        SERVICE.replace("10.96.0.1", "10.96.0.2"),
    )
    .unwrap();
    assert_eq!(reader.rescan().unwrap().len(), 1);
}

#[test]
fn a_bad_policy_is_refused_with_the_api_servers_words() {
    let (directory, mut reader) = directory(&[(
        "p.yaml",
        &POLICY.replace("IPTables", "IPTables, excludeCIDRs: [ten]"),
    )]);
    let events = first(&mut reader);
    assert!(
        matches!(&events[..], [Event::AssignmentUnusable(why)] if why.contains("excludeCIDRs must be a CIDR")),
        "{events:?}"
    );
    fs::write(directory.path().join("p.yaml"), POLICY).unwrap();
    fs::write(directory.path().join("q.yaml"), POLICY.replace("box", "other")).unwrap();
    let events = reader.rescan().unwrap();
    assert!(
        matches!(events.last(), Some(Event::AssignmentUnusable(why)) if why.contains("leave one")),
        "{events:?}"
    );
    fs::remove_file(directory.path().join("q.yaml")).unwrap();
    assert!(matches!(
        &reader.rescan().unwrap()[..],
        [Event::Assignment(Some(_))]
    ));
}

#[test]
fn changes_are_followed_while_they_happen() {
    let (directory, _) = directory(&[("b.yaml", POLICY)]);
    let (sender, mut events) = tokio::sync::mpsc::channel(100);
    let path = directory.path().to_owned();
    std::thread::spawn(move || follow(&path, "node-1", &sender));
    while events.blocking_recv() != Some(Event::ListEnds(Kind::Assignment)) {}
    fs::write(directory.path().join(".tmp"), SERVICE).unwrap();
    fs::rename(directory.path().join(".tmp"), directory.path().join("a.yaml")).unwrap();
    assert!(matches!(events.blocking_recv(), Some(Event::Service(..))));
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    assert_eq!(events.blocking_recv(), Some(Event::Assignment(None)));
}

#[test]
fn a_mode_that_no_longer_exists_is_refused_with_what_to_use_instead() {
    let (_directory, mut reader) = directory(&[("p.yaml", &POLICY.replace("IPTables", "userspace"))]);
    let events = first(&mut reader);
    assert!(
        matches!(&events[..], [Event::AssignmentUnusable(why)] if why.contains("use Auto")),
        "{events:?}"
    );
}

#[test]
fn a_policy_that_cannot_be_read_at_the_start_is_not_taken_for_none() {
    let (directory, mut reader) = directory(&[("p.yaml", "kind: ["), ("a.yaml", SERVICE)]);
    let events = first(&mut reader);
    assert!(
        matches!(events.last(), Some(Event::AssignmentUnusable(why)) if why.contains("p.yaml")),
        "{events:?}"
    );
    // The same file is not complained about again.
    assert_eq!(reader.rescan().unwrap(), []);
    fs::write(directory.path().join("p.yaml"), POLICY).unwrap();
    assert!(matches!(
        &reader.rescan().unwrap()[..],
        [Event::Assignment(Some(_))]
    ));
}

#[test]
fn when_the_unreadable_file_turns_out_to_have_no_policy_there_is_none() {
    let (directory, mut reader) = directory(&[("p.yaml", "kind: [")]);
    first(&mut reader);
    fs::remove_file(directory.path().join("p.yaml")).unwrap();
    assert_eq!(reader.rescan().unwrap(), [Event::Assignment(None)]);
}

#[test]
fn a_file_may_hold_a_whole_cluster() {
    let documents = (0..3000).map(|number| SERVICE.replace("web", &format!("web-{number}")));
    let (_directory, mut reader) = directory(&[("a.yaml", &documents.collect::<Vec<_>>().join("---\n"))]);
    assert_eq!(first(&mut reader).len(), 3000);
}
