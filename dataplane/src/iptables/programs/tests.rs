use super::*;

#[test]
fn versions() {
    let parsed = |text| parse_version(text);
    assert_eq!(
        parsed("iptables-restore v1.8.9 (nf_tables)\n"),
        Some((Variant::Nft, Version(1, 8, 9)))
    );
    assert_eq!(
        parsed("iptables v1.8.9 (legacy)"),
        Some((Variant::Legacy, Version(1, 8, 9)))
    );
    assert_eq!(
        parsed("iptables v1.6.2"),
        Some((Variant::Legacy, Version(1, 6, 2)))
    );
    assert_eq!(
        parsed("ip6tables v1.8 (legacy)"),
        Some((Variant::Legacy, Version(1, 8, 0)))
    );
    assert_eq!(parsed("BusyBox vX"), None);
    assert_eq!(parsed(""), None);
    assert!(Version(1, 10, 0) > Version(1, 8, 9));
}
