//! Which mode `Auto` is on this node.
//!
//! The answer is kept while the agent runs: a node does not change its mode because a question failed once, and one
//! that got new modules is asked again when its agent is restarted.

use pointsman_crds::Mode;
use pointsman_dataplane::model::Family;
use pointsman_dataplane::nftables::probe::Capability;

/// With older kernels mode NFTables was never tried, whatever they say.
const OLDEST: (u32, u32) = (5, 13);

/// What the agent chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This mode, for this reason.
    Final(Mode, String),
    /// NFTables for now, which says by itself why it fails if it does; the kernel has to be asked again.
    ForNow(String),
}

impl Choice {
    /// The mode to run and why.
    pub(super) fn mode(&self) -> (Mode, Option<String>) {
        match self {
            Self::Final(mode, why) => (*mode, Some(why.clone())),
            Self::ForNow(why) => (Mode::NFTables, Some(why.clone())),
        }
    }
}

/// Chooses by what the kernel said for each family that the node has, and by its release (`uname -r`). Both families
/// run the same mode, so what one lacks decides.
pub(super) fn choose(answers: &[(Family, Capability)], release: &str) -> Choice {
    let (major, minor) = OLDEST;
    if version(release).is_some_and(|version| version < OLDEST) {
        return Choice::Final(
            Mode::IPTables,
            format!(
                "Auto chose IPTables: NFTables needs Linux {major}.{minor} or newer, and this is {release}"
            ),
        );
    }
    let lacks = answers.iter().find_map(|(family, answer)| match answer {
        Capability::Lacking(what) => Some(format!("{family}: {what}")),
        _ => None,
    });
    if let Some(lacks) = lacks {
        return Choice::Final(
            Mode::IPTables,
            format!(
                "Auto chose IPTables: NFTables cannot run here ({lacks}); install what is missing and restart the agent"
            ),
        );
    }
    let undecided = answers.iter().find_map(|(family, answer)| match answer {
        Capability::Undecided(why) => Some(format!("{family}: {why}")),
        _ => None,
    });
    match undecided {
        Some(why) => Choice::ForNow(format!(
            "Auto tries NFTables: whether the kernel has all of it cannot be told for now ({why})"
        )),
        None => Choice::Final(
            Mode::NFTables,
            format!("Auto chose NFTables: Linux {release} has all that it needs"),
        ),
    }
}

/// The first two numbers of a release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking() -> Capability {
        Capability::Lacking("the kernel lacks random numbers in rules (module nft_numgen)".into())
    }

    fn undecided() -> Capability {
        Capability::Undecided("Cannot allocate memory".into())
    }

    #[test]
    fn a_mode_is_chosen_by_what_the_kernel_can_do_in_every_family() {
        use Capability::Full;
        let cases = [
            (
                [Full, Full],
                "6.18.0",
                Some(Mode::NFTables),
                "Linux 6.18.0 has all",
            ),
            ([Full, Full], "5.13.0-rc1", Some(Mode::NFTables), "has all"),
            ([Full, Full], "strange", Some(Mode::NFTables), "has all"),
            ([Full, Full], "5.12.19", Some(Mode::IPTables), "this is 5.12.19"),
            (
                [Full, Full],
                "4.18.0-553.el8",
                Some(Mode::IPTables),
                "5.13 or newer",
            ),
            (
                [Full, lacking()],
                "6.1.0-13-amd64",
                Some(Mode::IPTables),
                "IPv6: the kernel lacks random",
            ),
            (
                [lacking(), undecided()],
                "6.1.0",
                Some(Mode::IPTables),
                "module nft_numgen",
            ),
            ([Full, undecided()], "6.1.0", None, "IPv6: Cannot allocate memory"),
            (
                [undecided(), lacking()],
                "6.1.0",
                Some(Mode::IPTables),
                "restart the agent",
            ),
        ];
        for (answers, release, mode, words) in cases {
            let answers: Vec<_> = Family::ALL.into_iter().zip(answers).collect();
            let choice = choose(&answers, release);
            let (runs, why) = choice.mode();
            let why = why.unwrap();
            assert!(why.contains(words), "{why}");
            match mode {
                Some(mode) => assert_eq!(choice, Choice::Final(mode, why)),
                None => assert_eq!((runs, choice), (Mode::NFTables, Choice::ForNow(why))),
            }
        }
    }
}
