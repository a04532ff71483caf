//! How many Services, with how many endpoints each.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Error, Result, ensure};
use serde::{Deserialize, Serialize};

/// A number of Services and of endpoints each: `1000x10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Services.
    pub services: usize,
    /// Endpoints of each Service; a [`super::Probe`] has one.
    pub endpoints: usize,
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('x');
        let parse = |part: &str| part.parse().ok();
        let size = numbers.and_then(|(services, endpoints)| {
            Some(Self {
                services: parse(services)?,
                endpoints: parse(endpoints)?,
            })
        });
        let size = size.with_context(|| {
            format!("a size is SERVICESxENDPOINTS, such as 1000x10, and {text:?} is not one")
        })?;
        // A slice holds up to 1000 endpoints.
        ensure!(
            (1..=100_000).contains(&size.services) && (1..=1000).contains(&size.endpoints),
            "{text}: there is room for 1 to 100000 Services with 1 to 1000 endpoints each"
        );
        Ok(size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.services, self.endpoints)
    }
}

/// Reads several sizes, separated by spaces or commas.
///
/// # Errors
/// Names the first that is none.
pub fn parse_list(text: &str) -> Result<Vec<Size>> {
    let words = text.split([' ', ',']).filter(|word| !word.is_empty());
    let sizes: Vec<Size> = words.map(str::parse).collect::<Result<_>>()?;
    ensure!(!sizes.is_empty(), "no size given: try \"100x10 1000x10\"");
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() -> Result<()> {
        let sizes = parse_list(" 100x10  1000x10,7x1 ")?;
        let written: Vec<String> = sizes.iter().map(Size::to_string).collect();
        assert_eq!(written, ["100x10", "1000x10", "7x1"]);
        Ok(())
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", "100", "x", "0x10", "10x0", "-1x10", "1e3x10", "100001x1", "10x1001",
        ] {
            assert!(parse_list(text).is_err(), "{text:?}");
        }
    }
}
