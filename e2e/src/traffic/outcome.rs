//! What came of one attempt.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
};

/// What came of one connection or one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered.
    Answered(Answer),
    /// Refused at once: a TCP reset to the SYN, or ICMP port unreachable.
    Refused,
    /// ICMP network, host or address unreachable, or no route from here.
    Unreachable,
    /// Nothing came back in time.
    TimedOut,
    /// A TCP connection came about and ended before the answer.
    Reset,
    /// Anything else, in the system's words: a firewall's EPERM, a source port that is in use.
    Failed(String),
}

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub by: String,
    /// The client's address and port as the server saw them.
    pub seen_source: SocketAddr,
}

impl Outcome {
    /// The answer, when there is one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    /// The name of the server that answered.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        self.answer().map(|answer| answer.by.as_str())
    }

    /// Whether the server of this name answered.
    #[must_use]
    pub fn is_by(&self, name: &str) -> bool {
        self.by() == Some(name)
    }

    /// Reads a server's line.
    pub(crate) fn from_line(line: &str) -> Self {
        let answer = line.trim_end().rsplit_once(' ').and_then(|(by, source)| {
            Some(Answer {
                by: by.to_owned(),
                seen_source: source.parse().ok()?,
            })
        });
        answer.map_or_else(
            || Self::Failed(format!("an answer that no server here gives: {line:?}")),
            Self::Answered,
        )
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            // A read that ran into its SO_RCVTIMEO says WouldBlock.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Self::Reset,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Answer { by, seen_source }) => {
                write!(formatter, "answered by {by}, who saw {seen_source}")
            }
            Self::Refused => formatter.write_str("refused"),
            Self::Unreachable => formatter.write_str("unreachable"),
            Self::TimedOut => formatter.write_str("timed out"),
            Self::Reset => formatter.write_str("reset"),
            Self::Failed(why) => write!(formatter, "failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_server_and_the_source() {
        let outcome = Outcome::from_line("web 2 [fd00::1]:4711\n");
        assert!(outcome.is_by("web 2"));
        assert_eq!(
            outcome.answer().map(|answer| answer.seen_source.port()),
            Some(4711)
        );
        assert!(matches!(Outcome::from_line("hello"), Outcome::Failed(_)));
    }
}
