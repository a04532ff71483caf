//! Values of kernel parameters: what is wanted, and when two texts mean the same.

use super::Error;

/// The longest value that is written. The kernel takes a page at most (`proc_sys_call_handler`).
const MAX_LENGTH: usize = 1024;

/// What a parameter is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This value.
    Exactly(String),
    /// A number not below this one: a higher one that is there already stays.
    AtLeast(u64),
    /// This value, and it stays when nobody wants it any more: by then others may rely on it, and nothing tells who.
    ForGood(String),
}

impl From<&str> for Wanted {
    fn from(value: &str) -> Self {
        Self::Exactly(value.to_owned())
    }
}

impl From<String> for Wanted {
    fn from(value: String) -> Self {
        Self::Exactly(value)
    }
}

impl Wanted {
    /// The value that is written when one has to be.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Exactly(value) | Self::ForGood(value) => normal(value),
            Self::AtLeast(number) => number.to_string(),
        }
    }

    /// Whether `present` is as wanted.
    pub(super) fn is_met_by(&self, present: &str) -> bool {
        match self {
            Self::Exactly(value) | Self::ForGood(value) => same(value, present),
            Self::AtLeast(number) => present.parse().is_ok_and(|present: u64| present >= *number),
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let (Self::Exactly(value) | Self::ForGood(value)) = self else {
            return Ok(());
        };
        let printable = value
            .chars()
            .all(|c| c == '\t' || c == ' ' || c.is_ascii_graphic());
        if printable && value.len() <= MAX_LENGTH {
            Ok(())
        } else {
            Err(Error::BadValue {
                value: value.chars().take(80).collect(),
            })
        }
    }
}

/// The text with one space between its fields and none around them.
pub(super) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether two texts mean the same value: field by field, numbers as numbers, lists of ports (as in
/// `ip_local_reserved_ports`, which the kernel sorts and merges) as sets.
pub(super) fn same(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split_whitespace(), b.split_whitespace());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if same_field(a, b) => {}
            _ => return false,
        }
    }
}

fn same_field(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    if let (Ok(a), Ok(b)) = (a.parse::<i128>(), b.parse::<i128>()) {
        return a == b;
    }
    matches!((ports(a), ports(b)), (Some(a), Some(b)) if a == b)
}

/// A list such as `10,5-7` as sorted ranges that do not touch.
fn ports(field: &str) -> Option<Vec<(u16, u16)>> {
    let mut ranges = field
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        })
        .collect::<Option<Vec<(u16, u16)>>>()?;
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    Some(merged)
}
