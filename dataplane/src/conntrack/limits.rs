//! The kernel parameters that the limits of connection tracking mean.
//!
//! What follows kube-proxy (1.36, `pkg/proxy/conntrack/sysctls.go`) and what does not:
//!
//! - The limit is `max_per_core` times the cores, at least `min`. kube-proxy cuts the product off at 1,048,576;
//!   here a policy's numbers are taken as they are.
//! - The hash table is grown to a quarter of the limit, never shrunk.
//! - The limit is raised and lowered, but not lowered to or below the number of connections that are tracked
//!   (see [`crate::sysctl::Sysctls::apply`]); kube-proxy lowers it whatever the number, and then the kernel
//!   refuses new connections.
//! - Everything is put back when it is no longer wanted; kube-proxy leaves it.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use crate::sysctl::Wanted;

const MAX: &str = "net.netfilter.nf_conntrack_max";
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

/// The kernel keeps the limit in an int; a larger number would be refused.
const LARGEST_MAX: u64 = i32::MAX as u64;

/// How much is tracked, and for how long. What is absent is left as the node has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tracked connections for each core of the machine. 0 is as absent.
    pub max_per_core: Option<u32>,
    /// Lower bound of their product. Without `max_per_core` it means nothing, as for kube-proxy.
    pub min: Option<u32>,
    /// How long an idle established TCP connection is remembered.
    pub tcp_established_timeout_seconds: Option<u32>,
    /// How long a TCP connection in CLOSE_WAIT is remembered.
    pub tcp_close_wait_timeout_seconds: Option<u32>,
    /// Whether packets outside of the TCP window are accepted rather than marked invalid.
    pub tcp_be_liberal: Option<bool>,
    /// How long a UDP flow with packets in one direction only is remembered.
    pub udp_timeout_seconds: Option<u32>,
    /// How long a UDP flow with packets in both directions is remembered.
    pub udp_stream_timeout_seconds: Option<u32>,
}

impl Limits {
    /// The parameters that the limits mean on a machine with `cores` cores.
    ///
    /// ```
    /// use pointsman_dataplane::conntrack::Limits;
    ///
    /// let limits = Limits { max_per_core: Some(32_768), min: Some(131_072), ..Limits::default() };
    /// assert_eq!(limits.sysctls(2)["net.netfilter.nf_conntrack_max"], "131072".into());
    /// assert_eq!(limits.sysctls(8)["net.netfilter.nf_conntrack_max"], "262144".into());
    /// ```
    #[must_use]
    pub fn sysctls(&self, cores: u32) -> BTreeMap<String, Wanted> {
        let mut sysctls = BTreeMap::new();
        if let Some(max) = self.max(cores) {
            sysctls.insert(MAX.to_owned(), Wanted::from(max.to_string()));
            // More than four connections a slot make every packet walk long chains. Often the table is larger
            // already: kernels since 5.15 start with as many slots as connections.
            sysctls.insert(BUCKETS.to_owned(), Wanted::AtLeast(max / 4));
        }
        let values = [
            (
                "nf_conntrack_tcp_timeout_established",
                self.tcp_established_timeout_seconds,
            ),
            (
                "nf_conntrack_tcp_timeout_close_wait",
                self.tcp_close_wait_timeout_seconds,
            ),
            ("nf_conntrack_tcp_be_liberal", self.tcp_be_liberal.map(u32::from)),
            ("nf_conntrack_udp_timeout", self.udp_timeout_seconds),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream_timeout_seconds),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                sysctls.insert(format!("net.netfilter.{name}"), Wanted::from(value.to_string()));
            }
        }
        sysctls
    }

    fn max(&self, cores: u32) -> Option<u64> {
        let per_core = self.max_per_core.filter(|&per_core| per_core > 0)?;
        let scaled = u64::from(per_core) * u64::from(cores.max(1));
        Some(scaled.max(self.min.unwrap_or(0).into()).min(LARGEST_MAX))
    }
}

/// Adds the parameters that were asked for by name to `derived` ones. Where both speak of a parameter, the one by
/// name wins; with the limit of connections goes what was derived from it, the size of the hash table.
#[must_use]
pub fn merge(
    mut derived: BTreeMap<String, Wanted>,
    by_name: &BTreeMap<String, String>,
) -> BTreeMap<String, Wanted> {
    if by_name.contains_key(MAX) {
        derived.remove(BUCKETS);
    }
    derived.extend(
        by_name
            .iter()
            .map(|(name, value)| (name.clone(), Wanted::from(value.as_str()))),
    );
    derived
}

/// The cores of the machine that are online, at least 1. Not those that this process may use: a limit on the
/// agent's CPU time says nothing about the machine's connections.
#[must_use]
pub fn cores() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let usable =
        || thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    online
        .and_then(|list| count_cpus(list.trim()))
        .unwrap_or_else(usable)
        .max(1)
}

/// The CPUs in a list of the kernel's, such as `0-3,8`.
fn count_cpus(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_means_no_parameter() {
        assert!(Limits::default().sysctls(4).is_empty());
        assert!(
            Limits {
                min: Some(131_072),
                ..Limits::default()
            }
            .sysctls(4)
            .is_empty()
        );
        assert!(
            Limits {
                max_per_core: Some(0),
                ..Limits::default()
            }
            .sysctls(4)
            .is_empty()
        );
    }

    #[test]
    fn the_limit_grows_with_the_cores_above_the_lower_bound() {
        let max = |per_core, min, cores| {
            Limits {
                max_per_core: Some(per_core),
                min,
                ..Limits::default()
            }
            .max(cores)
        };
        assert_eq!(max(32_768, None, 2), Some(65_536));
        assert_eq!(max(32_768, Some(131_072), 2), Some(131_072));
        assert_eq!(max(32_768, Some(131_072), 128), Some(4_194_304));
        assert_eq!(max(32_768, None, 0), Some(32_768), "a machine has a core");
        assert_eq!(
            max(u32::MAX, Some(u32::MAX), u32::MAX),
            Some(2_147_483_647),
            "as much as the kernel takes"
        );
    }

    #[test]
    fn every_field_has_its_parameter() {
        let limits = Limits {
            max_per_core: Some(1000),
            min: None,
            tcp_established_timeout_seconds: Some(86_400),
            tcp_close_wait_timeout_seconds: Some(3600),
            tcp_be_liberal: Some(true),
            udp_timeout_seconds: Some(10),
            udp_stream_timeout_seconds: Some(60),
        };
        let expected: BTreeMap<String, Wanted> = [
            (BUCKETS, Wanted::AtLeast(500)),
            (MAX, "2000".into()),
            ("net.netfilter.nf_conntrack_tcp_be_liberal", "1".into()),
            ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "3600".into()),
            (
                "net.netfilter.nf_conntrack_tcp_timeout_established",
                "86400".into(),
            ),
            ("net.netfilter.nf_conntrack_udp_timeout", "10".into()),
            ("net.netfilter.nf_conntrack_udp_timeout_stream", "60".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        assert_eq!(limits.sysctls(2), expected);
        let strict = Limits {
            tcp_be_liberal: Some(false),
            ..Limits::default()
        };
        assert_eq!(
            strict.sysctls(2)["net.netfilter.nf_conntrack_tcp_be_liberal"],
            "0".into()
        );
    }

    #[test]
    fn what_is_asked_for_by_name_wins() {
        let derived = Limits {
            max_per_core: Some(1000),
            udp_timeout_seconds: Some(10),
            ..Limits::default()
        }
        .sysctls(4);
        let by_name = [
            (MAX.to_owned(), "9999".to_owned()),
            ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
        ];
        let merged = merge(derived.clone(), &by_name.into());
        let expected: BTreeMap<String, Wanted> = [
            ("net.ipv4.ip_forward", "1".into()),
            (MAX, "9999".into()),
            ("net.netfilter.nf_conntrack_udp_timeout", "10".into()),
        ]
        .map(|(name, value): (_, Wanted)| (name.to_owned(), value))
        .into();
        assert_eq!(merged, expected);
        let merged = merge(derived, &[(BUCKETS.to_owned(), "512".to_owned())].into());
        assert_eq!(merged[BUCKETS], "512".into());
    }

    #[test]
    fn cpu_lists_of_the_kernel_are_counted() {
        for (list, count) in [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0-3,8,10-11", Some(7)),
            ("", None),
            ("3-0", None),
        ] {
            assert_eq!(count_cpus(list), count, "{list:?}");
        }
        assert_eq!(count_cpus("0-4294967295"), None);
        assert!(cores() >= 1);
    }
}
