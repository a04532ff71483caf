//! What a side did with a question, and whether two sides did the same.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::traffic::Outcome;

/// What became of all attempts of one question on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who answered, and as whom it saw the sender.
    pub answers: BTreeSet<(SocketAddr, Source)>,
    /// How attempts failed.
    pub failures: BTreeSet<Failure>,
}

/// The source address that an endpoint saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The address that the sender sent from.
    Own,
    /// This one.
    Address(IpAddr),
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Refused.
    Refused,
    /// No way there: no proxy took it, and the gateway knows none.
    Unreachable,
    /// Nothing came back.
    Dropped,
    /// Anything else.
    Other(String),
}

/// How much a session affinity lets one see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Every endpoint that may answer does so sooner or later.
    All,
    /// One sender gets one endpoint, and each side chooses its own.
    Sticky,
    /// Of many senders only a few are let in, so that not every endpoint gets one.
    Few,
}

impl Seen {
    /// Takes an outcome in. `sent_from` is the source address, where it is known.
    pub fn add(&mut self, outcome: &Outcome, sent_from: Option<IpAddr>) {
        let failure = match outcome {
            Outcome::Answered(answer) => {
                let seen = answer.seen_source.ip();
                let source = if sent_from == Some(seen) {
                    Source::Own
                } else {
                    Source::Address(seen)
                };
                match answer.by.parse() {
                    Ok(by) => {
                        self.answers.insert((by, source));
                        return;
                    }
                    Err(_) => Failure::Other(format!("answered by {}", answer.by)),
                }
            }
            Outcome::Refused => Failure::Refused,
            Outcome::Unreachable => Failure::Unreachable,
            Outcome::TimedOut => Failure::Dropped,
            Outcome::Reset => Failure::Other("reset".to_owned()),
            Outcome::Failed(why) => Failure::Other(why.clone()),
        };
        self.failures.insert(failure);
    }

    /// Takes in what later attempts of the same question showed.
    pub fn extend(&mut self, later: Self) {
        self.answers.extend(later.answers);
        self.failures.extend(later.failures);
    }

    /// Whether all attempts failed in this way.
    #[must_use]
    pub fn is_only(&self, failure: &Failure) -> bool {
        self.answers.is_empty() && self.failures.len() == 1 && self.failures.contains(failure)
    }

    /// What it is in one word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (
            self.answers.is_empty(),
            self.failures.first(),
            self.failures.len(),
        ) {
            (false, None, _) => "answered",
            (true, Some(Failure::Refused), 1) => "refused",
            (true, Some(Failure::Unreachable), 1) => "unreachable",
            (true, Some(Failure::Dropped), 1) => "dropped",
            _ => "mixed",
        }
    }

    /// Whether the other side did the same.
    #[must_use]
    pub fn agrees(&self, other: &Self, sight: Sight) -> bool {
        if self.failures != other.failures {
            return false;
        }
        let same = |(by, source): &(SocketAddr, Source)| {
            let there = other.answers.iter().find(|(there, _)| there == by);
            there.is_none_or(|(_, there)| there == source)
        };
        let alike = self.answers.is_empty() == other.answers.is_empty() && self.answers.iter().all(same);
        match sight {
            Sight::All => self.answers == other.answers,
            Sight::Sticky => alike && (self.answers.len() > 1) == (other.answers.len() > 1),
            Sight::Few => alike,
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers = self.answers.iter().map(|(by, source)| match source {
            Source::Own => format!("answered by {by}, who saw the sender's address"),
            Source::Address(address) => format!("answered by {by}, who saw {address}"),
        });
        let failures = self.failures.iter().map(|failure| match failure {
            Failure::Refused => "refused".to_owned(),
            Failure::Unreachable => "unreachable".to_owned(),
            Failure::Dropped => "no answer".to_owned(),
            Failure::Other(why) => why.clone(),
        });
        let all: Vec<String> = answers.chain(failures).collect();
        formatter.write_str(&all.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[&str], failures: &[Outcome]) -> Seen {
        let mut seen = Seen::default();
        let sender = Some("10.0.0.1".parse().unwrap());
        for line in lines {
            seen.add(&Outcome::from_line(line), sender);
        }
        failures.iter().for_each(|outcome| seen.add(outcome, sender));
        seen
    }

    #[test]
    fn who_answers_and_the_source_that_is_seen_count() {
        let own = seen(&["10.1.1.1:80 10.0.0.1:4000"], &[]);
        let masqueraded = seen(&["10.1.1.1:80 10.9.9.9:4000"], &[]);
        let other = seen(&["10.1.1.2:80 10.0.0.1:4000"], &[]);
        let again = seen(&["10.1.1.1:80 10.0.0.1:4001"], &[]);
        assert!(own.agrees(&again, Sight::All), "ports of senders differ always");
        assert!(!own.agrees(&masqueraded, Sight::All) && !own.agrees(&masqueraded, Sight::Sticky));
        assert!(!own.agrees(&other, Sight::All));
        assert!(own.agrees(&other, Sight::Sticky));
    }

    #[test]
    fn a_refusal_is_no_drop() {
        let refused = seen(&[], &[Outcome::Refused]);
        let dropped = seen(&[], &[Outcome::TimedOut]);
        assert!(!refused.agrees(&dropped, Sight::Sticky));
        assert!(refused.is_only(&Failure::Refused) && !dropped.is_only(&Failure::Refused));
        let both = seen(&["10.1.1.1:80 10.0.0.1:4000"], &[Outcome::Refused]);
        assert!(!both.is_only(&Failure::Refused));
        assert!(!both.agrees(&seen(&["10.1.1.1:80 10.0.0.1:4000"], &[]), Sight::All));
    }

    #[test]
    fn one_that_sticks_and_one_that_does_not_differ() {
        let sticks = seen(&["10.1.1.1:80 10.0.0.1:1"], &[]);
        let wanders = seen(&["10.1.1.1:80 10.0.0.1:1", "10.1.1.2:80 10.0.0.1:1"], &[]);
        assert!(!sticks.agrees(&wanders, Sight::Sticky));
    }

    #[test]
    fn few_who_are_let_in_may_get_different_endpoints_and_nothing_else() {
        let one = seen(&["10.1.1.1:80 10.0.0.1:1"], &[Outcome::TimedOut]);
        let other = seen(&["10.1.1.2:80 10.0.0.1:1"], &[Outcome::TimedOut]);
        assert!(!one.agrees(&other, Sight::All) && one.agrees(&other, Sight::Few));
        let masqueraded = seen(&["10.1.1.1:80 10.9.9.9:1"], &[Outcome::TimedOut]);
        let (nobody, all) = (
            seen(&[], &[Outcome::TimedOut]),
            seen(&["10.1.1.1:80 10.0.0.1:1"], &[]),
        );
        for different in [masqueraded, nobody, all] {
            assert!(!one.agrees(&different, Sight::Few), "{different}");
        }
    }
}
