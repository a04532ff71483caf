//! What is particular to mode IPVS: connections that outlive it, work that is due by itself, and what the kernel lacks.

use super::*;

fn kernel(agent: &Agent, family: Family) -> Arc<Mutex<Held>> {
    Arc::clone(agent.ipvs.lock().unwrap().entry(family).or_default())
}

fn in_mode(mode: Mode) -> Option<Arc<Assignment>> {
    assignment(|spec| spec.mode = mode)
}

#[tokio::test]
async fn a_mode_whose_connections_live_on_is_taken_down_again_until_they_have_ended() {
    let mut agent = Agent::start();
    let v4 = kernel(&agent, Family::V4);
    agent.list(in_mode(Mode::IPVS)).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    v4.lock().unwrap().connections = 3;
    v4.lock().unwrap().calls.clear();
    agent.tell([Event::Assignment(in_mode(Mode::IPTables))]).await;
    agent
        .until("the other mode", |state| {
            state
                .mode
                .as_ref()
                .is_some_and(|(mode, _)| *mode == Mode::IPTables)
                && state.failures().count() == 0
        })
        .await;
    let torn_down = |held: &Arc<Mutex<Held>>| {
        let calls = &held.lock().unwrap().calls;
        calls.iter().filter(|call| **call == "teardown").count()
    };
    let mut tries = 0;
    while torn_down(&v4) < 2 {
        tries += 1;
        assert!(tries < 400, "it is not looked at again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // They do not hold changes up.
    agent.tell([endpoints(&[1, 2])]).await;
    agent
        .until("a change", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    v4.lock().unwrap().connections = 0;
    let seen = torn_down(&v4);
    let mut tries = 0;
    while torn_down(&v4) == seen {
        tries += 1;
        assert!(tries < 400, "it is not looked at any more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!v4.lock().unwrap().calls.contains(&"sync"));
}

#[tokio::test]
async fn what_is_due_by_itself_is_done_and_a_failure_is_repaired() {
    let mut agent = Agent::start();
    let v4 = kernel(&agent, Family::V4);
    agent.list(in_mode(Mode::IPVS)).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    v4.lock().unwrap().calls.clear();
    v4.lock().unwrap().tend_at = Some(Instant::now());
    v4.lock().unwrap().fail_tend = true;
    // Whatever happens next.
    agent.tell([endpoints(&[1, 2])]).await;
    agent
        .until("a change", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    let mut tries = 0;
    while v4.lock().unwrap().calls != ["apply", "tend", "sync"] {
        tries += 1;
        assert!(tries < 200, "{:?}", v4.lock().unwrap().calls);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_kernel_lacks_is_in_the_state() {
    let mut agent = Agent::start();
    let v4 = kernel(&agent, Family::V4);
    v4.lock().unwrap().lacking = vec!["the kernel has no IPVS scheduler mh".into()];
    agent.list(in_mode(Mode::IPVS)).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let state = agent.until("programmed", State::is_programmed).await;
    assert_eq!(state.lacking, ["the kernel has no IPVS scheduler mh"]);
}
