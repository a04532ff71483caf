//! The API's settings, as the data plane takes them.

use std::sync::Arc;

use ipnet::IpNet;
use pointsman_crds as api;
use pointsman_dataplane::model;

/// Why settings cannot be used. The API server's rules let none of these through; a file may have them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// No CIDR.
    #[error("{field} has {value:?}, which is no CIDR such as 10.244.0.0/16: mend the policy")]
    Cidr {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A field that the detect-local mode needs is not there, or is no interface's name.
    #[error("detectLocal.mode {mode:?} needs a valid detectLocal.{field}: mend the policy")]
    DetectLocal {
        /// The mode.
        mode: api::DetectLocalMode,
        /// What it needs.
        field: &'static str,
    },
    /// A number that is out of its range.
    #[error("{field} is {value}, which is out of its range ({range}): mend the policy")]
    Range {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i32,
        /// What it may say.
        range: &'static str,
    },
    /// No scheduler, or flags that it has not got.
    #[error("scheduler and ipvs.schedulerFlags: {0}: mend the policy")]
    Scheduler(#[from] model::BadScheduler),
    /// Flags without a scheduler.
    #[error("ipvs.schedulerFlags goes with scheduler sh or mh: mend the policy")]
    FlagsAlone,
    /// A kernel parameter that is not on the allow-list.
    #[error("sysctls has {0:?}, which no policy may set: remove it")]
    Sysctl(String),
}

/// The kernel takes a timeout of IPVS if it can count it in ticks, of which it has up to 1,000 a second
/// (`ip_vs_set_timeout`).
const LONGEST_SECONDS: i32 = i32::MAX / 1000;

/// The part of the settings that decides where packets go.
///
/// # Errors
/// When a value could not have come through the API server's rules.
pub fn forwarding(settings: &api::Settings) -> Result<model::Settings, SettingsError> {
    let node_port_addresses = settings
        .node_port_addresses
        .iter()
        .map(|entry| match entry.as_str() {
            "Primary" => Ok(model::NodePortAddresses::Primary),
            "All" => Ok(model::NodePortAddresses::All),
            range => Ok(model::NodePortAddresses::Within(cidr(
                "nodePortAddresses",
                range,
            )?)),
        })
        .collect::<Result<_, SettingsError>>()?;
    Ok(model::Settings {
        exclude_cidrs: cidrs("excludeCIDRs", &settings.exclude_cidrs)?,
        detect_local: detect_local(&settings.detect_local)?,
        masquerade_all: settings.masquerade_all,
        node_port_addresses,
        accept_invalid: settings.conntrack.tcp_be_liberal.unwrap_or(false),
        reset_removed: settings.conntrack.reset_removed_endpoints.unwrap_or(false),
        ipvs: ipvs(settings)?,
    })
}

fn ipvs(settings: &api::Settings) -> Result<model::IpvsSettings, SettingsError> {
    let ipvs = &settings.ipvs;
    let flags = ipvs.scheduler_flags.iter().map(|flag| flag.as_str());
    let scheduler = match &settings.scheduler {
        Some(name) => model::Scheduler::parse(name, flags)?,
        None if ipvs.scheduler_flags.is_empty() => model::Scheduler::default(),
        None => return Err(SettingsError::FlagsAlone),
    };
    let seconds = |field, value: Option<i32>, least: i32, range| {
        let Some(value) = value else { return Ok(None) };
        let within = (least..=LONGEST_SECONDS).contains(&value);
        let seconds = u32::try_from(value).ok().filter(|_| within);
        seconds
            .map(Some)
            .ok_or(SettingsError::Range { field, value, range })
    };
    let timeout = |field, value| seconds(field, value, 1, "1 to 2147483");
    Ok(model::IpvsSettings {
        scheduler,
        tcp_timeout: timeout("ipvs.tcpTimeoutSeconds", ipvs.tcp_timeout_seconds)?,
        tcp_fin_timeout: timeout("ipvs.tcpFinTimeoutSeconds", ipvs.tcp_fin_timeout_seconds)?,
        udp_timeout: timeout("ipvs.udpTimeoutSeconds", ipvs.udp_timeout_seconds)?,
        graceful: seconds("ipvs.gracefulSeconds", ipvs.graceful_seconds, 0, "0 to 2147483")?,
    })
}

/// Checks what the schema's ranges and the allow-list would have refused.
///
/// # Errors
/// When a value is out of its range, or a parameter is not on the allow-list.
pub fn check(settings: &api::Settings) -> Result<(), SettingsError> {
    forwarding(settings)?;
    let conntrack = &settings.conntrack;
    let positive = [
        ("conntrack.maxPerCore", conntrack.max_per_core),
        ("conntrack.min", conntrack.min),
        (
            "conntrack.tcpEstablishedTimeoutSeconds",
            conntrack.tcp_established_timeout_seconds,
        ),
        (
            "conntrack.tcpCloseWaitTimeoutSeconds",
            conntrack.tcp_close_wait_timeout_seconds,
        ),
        ("conntrack.udpTimeoutSeconds", conntrack.udp_timeout_seconds),
        (
            "conntrack.udpStreamTimeoutSeconds",
            conntrack.udp_stream_timeout_seconds,
        ),
        ("syncPeriodSeconds", Some(settings.sync_period_seconds)),
    ];
    for (field, value) in positive {
        if let Some(value) = value.filter(|value| *value < 1) {
            return Err(SettingsError::Range {
                field,
                value,
                range: "1 or more",
            });
        }
    }
    let bounded = [
        (
            "minSyncPeriodMilliseconds",
            settings.min_sync_period_milliseconds,
            60_000,
            "0 to 60000",
        ),
        ("logVerbosity", settings.log_verbosity, 10, "0 to 10"),
    ];
    for (field, value, max, range) in bounded {
        if !(0..=max).contains(&value) {
            return Err(SettingsError::Range { field, value, range });
        }
    }
    match settings
        .sysctls
        .keys()
        .find(|name| !api::sysctl::is_allowed(name))
    {
        Some(name) => Err(SettingsError::Sysctl(name.clone())),
        None => Ok(()),
    }
}

fn detect_local(detect: &api::DetectLocal) -> Result<model::DetectLocal, SettingsError> {
    let missing = |field| SettingsError::DetectLocal {
        mode: detect.mode,
        field,
    };
    Ok(match detect.mode {
        api::DetectLocalMode::NodeCIDR => model::DetectLocal::NodeCidr,
        api::DetectLocalMode::ClusterCIDR if detect.cluster_cidrs.is_empty() => {
            return Err(missing("clusterCIDRs"));
        }
        api::DetectLocalMode::ClusterCIDR => {
            model::DetectLocal::ClusterCidr(cidrs("detectLocal.clusterCIDRs", &detect.cluster_cidrs)?)
        }
        api::DetectLocalMode::BridgeInterface => model::DetectLocal::BridgeInterface(
            interface(detect.bridge_interface.as_deref()).ok_or_else(|| missing("bridgeInterface"))?,
        ),
        api::DetectLocalMode::InterfaceNamePrefix => model::DetectLocal::InterfaceNamePrefix(
            interface(detect.interface_name_prefix.as_deref())
                .ok_or_else(|| missing("interfaceNamePrefix"))?,
        ),
    })
}

/// The name of an interface, or the beginning of one. The kernel takes more (`dev_valid_name`), but no backend
/// could put quotes, spaces or `!` into a rule: a policy that has them must not come into force and then fail.
fn interface(name: Option<&str>) -> Option<Arc<str>> {
    let valid = |name: &&str| {
        (1..16).contains(&name.len())
            && !name.starts_with('-')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
    };
    name.filter(valid).map(Arc::from)
}

fn cidrs(field: &'static str, values: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    values.iter().map(|value| cidr(field, value)).collect()
}

fn cidr(field: &'static str, value: &str) -> Result<IpNet, SettingsError> {
    value
        .parse::<IpNet>()
        .map(|range| range.trunc())
        .map_err(|_| SettingsError::Cidr {
            field,
            value: value.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(change: impl FnOnce(&mut api::ProxyPolicySpec)) -> api::Settings {
        let mut spec: api::ProxyPolicySpec = serde_json::from_str("{}").unwrap();
        change(&mut spec);
        spec.settings()
    }

    #[test]
    fn the_defaults_are_usable() {
        let settings = settings(|_| {});
        assert_eq!(check(&settings), Ok(()));
        let forwarding = forwarding(&settings).unwrap();
        assert_eq!(
            forwarding.node_port_addresses,
            [model::NodePortAddresses::Primary]
        );
    }

    #[test]
    fn what_mode_ipvs_is_told() {
        let told = |scheduler: Option<&str>, ipvs: api::Ipvs| {
            forwarding(&settings(|s| {
                s.scheduler = scheduler.map(str::to_owned);
                s.ipvs = Some(ipvs);
            }))
            .map(|forwarding| forwarding.ipvs)
        };
        assert_eq!(
            told(None, api::Ipvs::default()),
            Ok(model::IpvsSettings::default()),
            "round robin, and what the kernel has"
        );
        let flags = vec![api::SchedulerFlag::Port, api::SchedulerFlag::Fallback];
        let all = api::Ipvs {
            scheduler_flags: flags.clone(),
            strict_arp: true,
            tcp_timeout_seconds: Some(1),
            tcp_fin_timeout_seconds: Some(30),
            udp_timeout_seconds: Some(2_147_483),
            graceful_seconds: Some(0),
        };
        let found = told(Some("mh"), all).unwrap();
        assert_eq!(found.scheduler.to_string(), "mh (fallback,port)");
        assert_eq!(
            (
                found.tcp_timeout,
                found.tcp_fin_timeout,
                found.udp_timeout,
                found.graceful
            ),
            (Some(1), Some(30), Some(2_147_483), Some(0))
        );
        let flagged = || api::Ipvs {
            scheduler_flags: flags.clone(),
            ..Default::default()
        };
        let refused = |scheduler, ipvs| told(scheduler, ipvs).unwrap_err().to_string();
        assert!(
            refused(Some("wlcc"), api::Ipvs::default())
                .contains("there is no scheduler \"wlcc\", only rr, wrr,")
        );
        assert!(refused(Some("wlc"), flagged()).contains("scheduler wlc has no flag \"Port\""));
        assert_eq!(told(None, flagged()), Err(SettingsError::FlagsAlone));
        for (field, too_small) in [
            ("tcpTimeoutSeconds", 0),
            ("tcpFinTimeoutSeconds", 0),
            ("udpTimeoutSeconds", 0),
            ("gracefulSeconds", -1),
        ] {
            for value in [too_small, 2_147_484] {
                let ipvs = serde_json::from_value(serde_json::json!({ field: value })).unwrap();
                let said = refused(None, ipvs);
                let expected = format!("ipvs.{field} is {value}, which is out of its range");
                assert!(said.starts_with(&expected), "{said}");
            }
        }
    }

    #[test]
    fn the_api_and_the_data_plane_know_the_same_schedulers() {
        assert_eq!(
            api::SCHEDULERS,
            model::SchedulerKind::ALL.map(model::SchedulerKind::as_str)
        );
    }

    #[test]
    fn values_that_only_a_file_can_have_are_refused_with_the_field() {
        let bad = [
            settings(|s| s.exclude_cidrs = vec!["10.0.0.0".into()]),
            settings(|s| s.sync_period_seconds = 0),
            settings(|s| s.min_sync_period_milliseconds = -1),
            settings(|s| {
                s.conntrack = Some(api::Conntrack {
                    min: Some(-5),
                    ..Default::default()
                })
            }),
            settings(|s| s.sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into()),
            settings(|s| {
                s.detect_local = Some(api::DetectLocal {
                    mode: api::DetectLocalMode::BridgeInterface,
                    ..Default::default()
                });
            }),
        ];
        for settings in bad {
            assert!(
                check(&settings).unwrap_err().to_string().contains("policy") || settings.sysctls.len() == 1
            );
        }
    }
}
