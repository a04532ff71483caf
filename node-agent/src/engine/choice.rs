//! Which mode `Auto` is on this node.
//!
//! The answer is kept while the agent runs: a node does not change its mode because a question failed once, and one
//! that got new modules is asked again when its agent is restarted.

use pointsman_crds::Mode;
use pointsman_dataplane::model::{Family, SchedulerKind};
use pointsman_dataplane::nftables::probe::Capability;

/// With older kernels mode NFTables was never tried, whatever they say.
const OLDEST: (u32, u32) = (5, 13);

/// What the agent chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This mode, for this reason.
    Final(Mode, String),
    /// This mode for now, which says by itself why it fails if it does; the kernel has to be asked again.
    ForNow(Mode, String),
}

impl Choice {
    /// The mode to run and why.
    pub(super) fn mode(&self) -> (Mode, Option<String>) {
        match self {
            Self::Final(mode, why) | Self::ForNow(mode, why) => (*mode, Some(why.clone())),
        }
    }
}

/// Chooses by what the kernel says for each family that the node has, and by its release (`uname -r`). All families run the
/// same mode, so what one lacks decides. A policy that names a scheduler gets IPVS, because no other mode has any.
pub(super) fn choose(
    scheduler: Option<SchedulerKind>,
    ipvs: impl Fn(Family, SchedulerKind) -> Capability,
    nftables: impl Fn(Family) -> Capability,
    families: &[Family],
    release: &str,
) -> Choice {
    let Some(kind) = scheduler else {
        return without_scheduler(&asked(families, nftables), release);
    };
    match verdict(&asked(families, |family| ipvs(family, kind))) {
        Verdict::Full => Choice::Final(
            Mode::IPVS,
            format!("Auto chose IPVS: the policy names scheduler {kind}, and Linux {release} has it"),
        ),
        Verdict::Undecided(why) => Choice::ForNow(
            Mode::IPVS,
            format!("Auto tries IPVS: whether the kernel has all of it cannot be told for now ({why})"),
        ),
        Verdict::Lacking(lacks) => {
            let left = format!(
                "the policy names scheduler {kind}, which only IPVS has, and that cannot run here ({lacks}); install what is \
                 missing and restart the agent"
            );
            match without_scheduler(&asked(families, nftables), release) {
                Choice::Final(mode, why) => Choice::Final(mode, format!("{why}; {left}")),
                Choice::ForNow(mode, why) => Choice::ForNow(mode, format!("{why}; {left}")),
            }
        }
    }
}

fn asked(families: &[Family], ask: impl Fn(Family) -> Capability) -> Vec<(Family, Capability)> {
    families.iter().map(|family| (*family, ask(*family))).collect()
}

/// What all answers come to.
enum Verdict {
    Full,
    Lacking(String),
    Undecided(String),
}

fn verdict(answers: &[(Family, Capability)]) -> Verdict {
    let lacks = answers.iter().find_map(|(family, answer)| match answer {
        Capability::Lacking(what) => Some(format!("{family}: {what}")),
        _ => None,
    });
    let undecided = answers.iter().find_map(|(family, answer)| match answer {
        Capability::Undecided(why) => Some(format!("{family}: {why}")),
        _ => None,
    });
    match (lacks, undecided) {
        (Some(lacks), _) => Verdict::Lacking(lacks),
        (None, Some(why)) => Verdict::Undecided(why),
        (None, None) => Verdict::Full,
    }
}

fn without_scheduler(answers: &[(Family, Capability)], release: &str) -> Choice {
    let (major, minor) = OLDEST;
    if version(release).is_some_and(|version| version < OLDEST) {
        return Choice::Final(
            Mode::IPTables,
            format!(
                "Auto chose IPTables: NFTables needs Linux {major}.{minor} or newer, and this is {release}"
            ),
        );
    }
    match verdict(answers) {
        Verdict::Lacking(lacks) => Choice::Final(
            Mode::IPTables,
            format!(
                "Auto chose IPTables: NFTables cannot run here ({lacks}); install what is missing and restart the agent"
            ),
        ),
        Verdict::Undecided(why) => Choice::ForNow(
            Mode::NFTables,
            format!("Auto tries NFTables: whether the kernel has all of it cannot be told for now ({why})"),
        ),
        Verdict::Full => Choice::Final(
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
            let choice = choose_by(None, [Full, Full], answers, release);
            let (runs, why) = choice.mode();
            let why = why.unwrap();
            assert!(why.contains(words), "{why}");
            match mode {
                Some(mode) => assert_eq!(choice, Choice::Final(mode, why)),
                None => assert_eq!(
                    (runs, choice),
                    (Mode::NFTables, Choice::ForNow(Mode::NFTables, why))
                ),
            }
        }
    }

    /// Chooses by each family's answers about IPVS and about NFTables.
    fn choose_by(
        scheduler: Option<SchedulerKind>,
        ipvs: [Capability; 2],
        nftables: [Capability; 2],
        release: &str,
    ) -> Choice {
        let of = |answers: &[Capability; 2], family| {
            let place = Family::ALL.iter().position(|other| *other == family);
            answers[place.unwrap()].clone()
        };
        choose(
            scheduler,
            |family, _| of(&ipvs, family),
            |family| of(&nftables, family),
            &Family::ALL,
            release,
        )
    }

    #[test]
    fn a_policy_that_names_a_scheduler_gets_ipvs_where_the_kernel_has_it() {
        use Capability::Full;
        let none = || Capability::Lacking("the kernel lacks IPVS (module ip_vs, CONFIG_IP_VS)".into());
        let kind = Some(SchedulerKind::WeightedLeastConnections);
        let choose = |ipvs, nftables| choose_by(kind, ipvs, nftables, "6.12.0").mode();
        let (mode, why) = choose([Full, Full], [Full, Full]);
        assert_eq!(mode, Mode::IPVS);
        assert!(why.unwrap().contains("names scheduler wlc"));
        let (mode, why) = choose([Full, none()], [Full, Full]);
        let why = why.unwrap();
        assert_eq!(mode, Mode::NFTables, "{why}");
        assert!(
            why.contains("Auto chose NFTables") && why.contains("IPv6: the kernel lacks IPVS"),
            "{why}"
        );
        let (mode, why) = choose([none(), none()], [lacking(), Full]);
        let why = why.unwrap();
        assert_eq!(mode, Mode::IPTables, "{why}");
        assert!(
            why.contains("nft_numgen") && why.contains("module ip_vs"),
            "{why}"
        );
        let choice = choose_by(kind, [Full, undecided()], [Full, Full], "6.12.0");
        assert!(matches!(choice, Choice::ForNow(Mode::IPVS, _)), "{choice:?}");
    }
}
