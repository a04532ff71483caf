//! What the host gives or fails to give: programs, a family, kernel parameters, ports. And what the command line says.

mod support;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Agent, Fabric, IptablesVariant, Manifests, NodeNet,
    agent::{Source, state_dir},
    binaries::{self, Binary},
    requirements,
    rules::{Family, iptables},
    sysctl,
    traffic::{Outcome, Protocol},
};
use serde_json::json;
use support::{LIMIT, POLICY, Site, cluster_ips, eventually, expect_answers};

in_both_variants! {
    an_agent_without_iptables_says_so_and_recovers
    a_program_that_goes_away_is_named_and_comes_back
    a_family_that_fails_from_the_start_leaves_the_other_alone
    a_family_that_fails_later_leaves_the_other_alone
    a_lock_that_somebody_holds_is_waited_for
}

fn in_bin(node: &NodeNet, program: &str) -> PathBuf {
    node.folder().file("bin").join(program)
}

/// An agent that sees nothing of /usr/sbin: the links of the node's own folder of programs lead nowhere.
fn start_without_sbin(site: &Site) -> Result<Agent> {
    let nothing = site.node.folder().file("nothing");
    fs::create_dir_all(&nothing)?;
    let mut command = site.node.command("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$1\" /usr/sbin && shift && exec \"$@\"",
        "sh",
    ]);
    command.arg(nothing).arg(binaries::find(Binary::Agent)?);
    Agent::start_command(&site.node, command, Source::Manifests(site.manifests.path()), &[])
}

fn an_agent_without_iptables_says_so_and_recovers(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = start_without_sbin(&site)?;
    for program in ["iptables-restore", "ip6tables-restore"] {
        agent.wait_until_logged(&format!("{program} cannot be run"), LIMIT)?;
    }
    agent.wait_until_logged("install the package that has it (Debian: iptables)", LIMIT)?;
    ensure!(agent.health("/healthz")?.0 == 503, "it forwards nothing");
    ensure!(agent.metrics("/configz")?.1.contains("everywhere"));
    // It appears, as a package that is installed.
    let program = requirements::find(variant.program()).context("this machine has no iptables")?;
    for name in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            let target = in_bin(&site.node, &format!("{name}{suffix}"));
            fs::remove_file(&target)?;
            fs::copy(&program, &target)?;
        }
    }
    agent.wait_until_healthy(LIMIT)?;
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1", "web-2"])?;
    }
    ensure!(agent.log()?.contains("the kernel holds the table again"));
    Ok(())
}

fn a_program_that_goes_away_is_named_and_comes_back(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let programs = [
        "iptables-restore",
        "ip6tables-restore",
        "iptables-save",
        "ip6tables-save",
    ]
    .map(|name| in_bin(&site.node, name));
    let floods = cluster_ips(Protocol::Tcp).map(|vip| site.pod_client().flood(Protocol::Tcp, vip));
    for program in &programs {
        fs::rename(program, program.with_extension("gone"))?;
    }
    site.manifests.remove(support::WEB)?;
    for program in ["/bin/iptables-", "/bin/ip6tables-"] {
        agent.wait_until_logged(program, LIMIT)?;
    }
    for flood in floods {
        flood.wait_for(50, LIMIT)?;
        flood
            .stop_without_loss()
            .context("the rules stay when nobody can change them")?;
    }
    for program in &programs {
        fs::rename(program.with_extension("gone"), program)?;
    }
    for vip in cluster_ips(Protocol::Tcp) {
        site.pod_client().until(Protocol::Tcp, vip, LIMIT, |outcome| {
            *outcome == Outcome::Unreachable
        })?;
    }
    agent.wait_until_healthy(LIMIT)
}

/// Makes a node's ip6tables-restore fail, or work again.
fn break_ipv6(site: &Site, variant: IptablesVariant, broken: bool) -> Result<()> {
    let program = in_bin(&site.node, "ip6tables-restore");
    let new = program.with_extension("new");
    let real = requirements::find(variant.program()).context("this machine has no iptables")?;
    if broken {
        // It is an iptables, and it refuses whatever it is told.
        let script = format!(
            "#!/bin/bash\n[ \"$1\" = --version ] && exec -a ip6tables-restore {} --version\ncat > /dev/null\necho 'no such luck' >&2\nexit 3\n",
            real.display()
        );
        fs::write(&new, script)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    } else {
        symlink(real, &new)?;
    }
    fs::rename(new, program).context("putting a program in place")
}

fn a_family_that_fails_from_the_start_leaves_the_other_alone(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    break_ipv6(&site, variant, true)?;
    let agent = site.launch(&[])?;
    let [v4, v6] = cluster_ips(Protocol::Tcp);
    expect_answers(&site.pod_client(), Protocol::Tcp, v4, &["web-1", "web-2"])?;
    for text in [
        "the table cannot be written to the kernel family=IPv6",
        "no such luck",
        "ip6tables-restore failed (exit status: 3)",
    ] {
        agent.wait_until_logged(text, LIMIT)?;
    }
    let outcome = site.pod_client().tcp(v6);
    ensure!(outcome == Outcome::Unreachable, "{outcome}");
    ensure!(agent.health("/healthz")?.0 == 503, "half of it does not work");
    ensure!(
        agent.metric(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "ip_family=\"IPv6\""
        )? > 0.0
    );
    ensure!(
        agent.metric(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "ip_family=\"IPv4\""
        )? < 1.0
    );
    // Changes of the family that works are followed meanwhile.
    site.set_endpoints(&[&site.pods[1]])?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v4, &["web-2"])?;
    break_ipv6(&site, variant, false)?;
    agent.wait_until_healthy(LIMIT)?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v6, &["web-2"])
}

fn a_family_that_fails_later_leaves_the_other_alone(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let [v4, v6] = cluster_ips(Protocol::Tcp);
    break_ipv6(&site, variant, true)?;
    let flood = site.pod_client().flood(Protocol::Tcp, v6);
    site.set_endpoints(&[&site.pods[0]])?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v4, &["web-1"])?;
    agent.wait_until_logged("writing a change failed: writing everything family=IPv6", LIMIT)?;
    agent.wait_until_logged("the table cannot be written to the kernel family=IPv6", LIMIT)?;
    // A change that waits for longer than two slow checks: load balancers are told to go elsewhere.
    eventually("/healthz says that a change is stuck", || {
        ensure!(agent.health("/healthz")?.0 == 503);
        Ok(())
    })?;
    flood.wait_for(20, LIMIT)?;
    flood.stop_without_loss().context("the rules from before stay")?;
    break_ipv6(&site, variant, false)?;
    agent.wait_until_healthy(LIMIT)?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v6, &["web-1"])?;
    ensure!(
        agent
            .log()?
            .contains("the kernel holds the table again family=IPv6")
    );
    // The same for a repair.
    break_ipv6(&site, variant, true)?;
    iptables(&site.node, Family::V6, "-t nat -F PM-SERVICES")?;
    eventually("/healthz says that a repair is stuck", || {
        ensure!(agent.health("/healthz")?.0 == 503);
        Ok(())
    })?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v4, &["web-1"])?;
    break_ipv6(&site, variant, false)?;
    agent.wait_until_healthy(LIMIT)?;
    expect_answers(&site.pod_client(), Protocol::Tcp, v6, &["web-1"])
}

fn a_lock_that_somebody_holds_is_waited_for(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let lock = fs::File::create(site.node.folder().file("xtables.lock"))?;
    lock.lock()?;
    let flood = site
        .pod_client()
        .flood(Protocol::Tcp, cluster_ips(Protocol::Tcp)[0]);
    site.set_endpoints(&[&site.pods[0]])?;
    flood.wait_for(300, LIMIT)?;
    lock.unlock()?;
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1"])?;
    }
    flood.stop_without_loss()?;
    ensure!(
        agent.metric(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            ""
        )? < 1.0
    );
    Ok(())
}

#[test]
fn kernel_parameters_are_set_kept_named_and_put_back() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let read = |name: &str| sysctl::read(site.node.namespace(), name);
    let wanted = [
        ("net.netfilter.nf_conntrack_tcp_timeout_established", "7201"),
        ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "61"),
        ("net.netfilter.nf_conntrack_udp_timeout", "31"),
        ("net.netfilter.nf_conntrack_udp_timeout_stream", "121"),
        ("net.netfilter.nf_conntrack_tcp_be_liberal", "1"),
        ("net.ipv4.ip_local_port_range", "20000\t60000"),
        ("net.netfilter.nf_conntrack_tcp_timeout_fin_wait", "47"),
    ];
    let found = wanted
        .map(|(name, _)| read(name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let conntrack = json!({"tcpEstablishedTimeoutSeconds": 7201, "tcpCloseWaitTimeoutSeconds": 61, "udpTimeoutSeconds": 31,
        "udpStreamTimeoutSeconds": 121, "tcpBeLiberal": true, "maxPerCore": 65536});
    let sysctls = json!({"net.ipv4.ip_local_port_range": "20000 60000", "net.netfilter.nf_conntrack_tcp_timeout_fin_wait": "47",
        "net.ipv4.vs.conn_reuse_mode": "0"});
    let policy = || {
        site.policy()
            .set("conntrack", conntrack.clone())
            .set("sysctls", sysctls.clone())
    };
    site.set_policy(policy())?;
    let agent = site.start()?;
    let in_place = || -> Result<()> {
        for (name, value) in wanted {
            let now = read(name)?;
            ensure!(now == value, "{name} is {now} and not {value}");
        }
        Ok(())
    };
    in_place()?;
    // What this machine cannot do is named, with what to do about it; and it costs nothing else.
    for text in [
        "net.netfilter.nf_conntrack_max cannot be written here: it belongs to the whole machine",
        "net.ipv4.vs.conn_reuse_mode does not exist: the kernel has no IPVS loaded",
    ] {
        agent.wait_until_logged(text, LIMIT)?;
    }
    ensure!(agent.health("/healthz")?.0 == 200);
    // Said once, not at every check.
    sysctl::write(
        site.node.namespace(),
        &[("net.netfilter.nf_conntrack_udp_timeout", "5")],
    )?;
    eventually("somebody else's change is undone", in_place)?;
    agent.wait_until_logged("net.netfilter.nf_conntrack_udp_timeout set to 31 again", LIMIT)?;
    ensure!(
        agent
            .log()?
            .matches("nf_conntrack_max cannot be written here")
            .count()
            == 1
    );
    // A value that the policy no longer names goes back to what was found; also after a restart.
    agent.process().kill9()?;
    let agent = site.start()?;
    site.set_policy(site.policy().set("conntrack", json!({"udpTimeoutSeconds": 33})))?;
    eventually("the others are put back", || {
        for ((name, _), found) in wanted.iter().zip(&found) {
            let wanted = if name.ends_with("udp_timeout") {
                "33"
            } else {
                found
            };
            let now = read(name)?;
            ensure!(now == wanted, "{name} is {now} and not {wanted}");
        }
        Ok(())
    })?;
    site.manifests.remove(POLICY)?;
    eventually("all are put back", || {
        for ((name, _), found) in wanted.iter().zip(&found) {
            let now = read(name)?;
            ensure!(now == *found, "{name} is {now} and was {found}");
        }
        Ok(())
    })?;
    ensure!(agent.process().is_running());
    Ok(())
}

#[test]
fn the_policy_says_how_much_is_logged() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let agent = site.start()?;
    ensure!(!agent.log()?.contains("DEBUG"));
    site.set_policy(site.policy().set("logVerbosity", 4))?;
    agent.wait_until_logged("DEBUG", LIMIT)?;
    site.set_endpoints(&[&site.pods[0]])?;
    agent.wait_until_logged("the changes are in the kernel family=IPv6", LIMIT)?;
    site.set_policy(site.policy().set("logVerbosity", 0))?;
    eventually("/configz has it", || {
        ensure!(agent.metrics("/configz")?.1.contains("\"logVerbosity\":0"));
        Ok(())
    })?;
    let before = agent.log()?;
    for pods in [[&site.pods[0]], [&site.pods[1]]] {
        site.set_endpoints(&pods)?;
        for vip in cluster_ips(Protocol::Tcp) {
            expect_answers(&site.pod_client(), Protocol::Tcp, vip, &[pods[0].name()])?;
        }
    }
    std::thread::sleep(Duration::from_millis(1200));
    ensure!(agent.log()? == before, "{}", &agent.log()?[before.len()..]);
    ensure!(!before.contains('\u{1b}'), "a log in a file has no colours");
    // What is wrong is said on every level.
    site.manifests.put_text("broken.yaml", "{")?;
    agent.wait_until_logged("broken.yaml is no YAML", LIMIT)
}

fn run(node: &NodeNet, arguments: &[&str]) -> Result<(Output, String)> {
    let mut command = node.command(binaries::find(Binary::Agent)?);
    let output = command
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir(node))
        .output()?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Ok((output, said))
}

#[test]
fn a_port_that_is_taken_is_named() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    let manifests = Manifests::new()?;
    let directory = manifests.path().to_string_lossy().into_owned();
    for (port, flag) in [
        (10256, "--healthz-bind-address"),
        (10249, "--metrics-bind-address"),
    ] {
        let _taken = node
            .namespace()
            .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))??;
        let (output, said) = run(&node, &["--node-name", "node-1", "--manifests", &directory])?;
        ensure!(output.status.code() == Some(1), "{:?}: {said}", output.status);
        let wanted = format!("({flag}): is another proxy of this node, kube-proxy for example, using it?");
        ensure!(
            said.contains(&format!(":{port} ")) && said.contains(&wanted),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn a_wrong_command_line_is_said_to_be_wrong() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    for (arguments, said) in [
        (&["--node-name", "x", "--manifest", "/"][..], "--manifests"),
        (&["--manifests", "/"], "--node-name"),
        (
            &["--node-name", "x", "--healthz-bind-address", "here"],
            "--healthz-bind-address",
        ),
        (
            &["--node-name", "x", "--manifests", "/", "--kubeconfig", "/"],
            "cannot be used with",
        ),
        (&["--node-name", "x", "-v", "much"], "verbosity"),
    ] {
        let (output, text) = run(&node, arguments)?;
        ensure!(
            output.status.code() == Some(2) && text.contains(said),
            "{arguments:?}: {:?}: {text}",
            output.status
        );
    }
    for (arguments, said) in [
        (
            &["--node-name", "x", "--manifests", "/nowhere"][..],
            "directory of --manifests, /nowhere",
        ),
        (&["--node-name", "x", "--kubeconfig", "/nowhere"], "/nowhere"),
        (&["--node-name", "x"], "--kubeconfig"),
    ] {
        let (output, text) = run(&node, arguments)?;
        ensure!(
            output.status.code() == Some(1) && text.contains(said),
            "{arguments:?}: {:?}: {text}",
            output.status
        );
    }
    let (output, help) = run(&node, &["--help"])?;
    ensure!(output.status.success());
    for part in [
        "Examples:",
        "pointsman-agent --node-name box --manifests /etc/pointsman/manifests",
        "--cleanup",
        "[default: 0.0.0.0:10256]",
    ] {
        ensure!(help.contains(part), "{part} is not in\n{help}");
    }
    let (output, version) = run(&node, &["--version"])?;
    ensure!(
        output.status.success() && version.starts_with("pointsman-agent "),
        "{version}"
    );
    Ok(())
}
