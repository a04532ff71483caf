use std::io;

use super::*;

fn refused(errno: Errno) -> NetlinkError {
    NetlinkError::Refused {
        what: "a rule of chain external".to_owned(),
        source: io::Error::from_raw_os_error(errno as i32),
        text: String::new(),
    }
}

#[test]
fn what_is_not_there_is_told_from_what_failed_for_now() {
    let none = Vec::<&'static Feature>::new;
    for errno in [
        Errno::ENOMEM,
        Errno::ENOBUFS,
        Errno::EBUSY,
        Errno::EAGAIN,
        Errno::EINTR,
        Errno::EPERM,
        Errno::EMFILE,
    ] {
        let verdict = verdict(&refused(errno), || panic!("{errno} is no answer"));
        assert!(
            matches!(verdict, Capability::Undecided(_)),
            "{errno}: {verdict:?}"
        );
    }
    for errno in [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EINVAL] {
        let verdict = verdict(&refused(errno), none);
        assert!(matches!(verdict, Capability::Lacking(_)), "{errno}: {verdict:?}");
    }
    assert_eq!(
        verdict(&NetlinkError::Absent, none),
        Capability::Lacking(NetlinkError::Absent.to_string())
    );
}

#[test]
fn what_is_missing_is_named_with_where_it_comes_from() {
    let missing = || {
        FEATURES
            .iter()
            .filter(|feature| feature.what.contains("random"))
            .collect()
    };
    assert_eq!(
        verdict(&refused(Errno::ENOENT), missing),
        Capability::Lacking("the kernel lacks random numbers in rules (module nft_numgen)".to_owned())
    );
}
