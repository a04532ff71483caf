use super::*;

fn read_lines(table: Table, text: &str) -> KubeProxyChains {
    let mut reader = Reader {
        table: Some(table),
        ..Reader::default()
    };
    text.lines().for_each(|line| reader.read(line.trim()));
    reader.chains()
}

#[test]
fn only_what_asks_for_no_destination_and_can_be_reached_counts() {
    let invalid = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
    let found = read_lines(
        Table::Filter,
        &format!(
            r#"*filter
            :INPUT ACCEPT [0:0]
            :KUBE-FORWARD - [0:0]
            :KUBE-SERVICES - [0:0]
            :KUBE-PROXY-FIREWALL - [0:0]
            :KUBE-NODEPORTS - [0:0]
            :KUBE-SOURCE-RANGES-FIREWALL - [0:0]
            :KUBE-FIREWALL - [0:0]
            -A INPUT -j KUBE-FIREWALL
            -A INPUT -m comment --comment "a -j DROP" -j KUBE-NODEPORTS
            -A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
            -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
            -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
            -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
            {invalid}
            -A KUBE-FORWARD -m comment --comment "-d none" -j ACCEPT
            -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
            -A KUBE-NODEPORTS -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 30080 -j DROP
            -A KUBE-PROXY-FIREWALL -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
            -A KUBE-SOURCE-RANGES-FIREWALL -j DROP
            COMMIT"#
        ),
    );
    assert_eq!((found.count, found.anywhere), (5, vec![invalid.to_owned()]));
}

#[test]
fn what_kubelet_and_we_have_is_not_kube_proxys() {
    let text = ":KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\n\
        :KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-ROUTER-INPUT - [0:0]\n:PM-SERVICES - [0:0]";
    for table in Table::ALL {
        assert_eq!(read_lines(table, text), KubeProxyChains::default());
    }
    let found = read_lines(Table::Nat, ":KUBE-SEP-AAAA - [0:0]\n-A KUBE-SEP-AAAA -j DROP");
    assert_eq!((found.count, found.anywhere.len()), (1, 0), "nat drops nothing");
}
