use proptest::prelude::*;

use super::*;

#[test]
fn a_message_looks_as_the_kernel_lays_it_out() {
    let mut writer = Writer::default();
    let message = writer.message(0x0a09, 0x405, 7, 2, 0);
    writer.put_text(1, "pm");
    let nest = writer.nest(2);
    writer.put_u32(3, 0x0102_0304);
    writer.end(nest);
    writer.end_message(message);
    let expected = [
        &40_u32.to_ne_bytes()[..],
        &0x0a09_u16.to_ne_bytes(),
        &0x405_u16.to_ne_bytes(),
        &7_u32.to_ne_bytes(),
        &[0, 0, 0, 0, 2, 0, 0, 0],
        &7_u16.to_ne_bytes(),
        &1_u16.to_ne_bytes(),
        b"pm\0\0",
        &12_u16.to_ne_bytes(),
        &0x8002_u16.to_ne_bytes(),
        &8_u16.to_ne_bytes(),
        &3_u16.to_ne_bytes(),
        &[1, 2, 3, 4],
    ]
    .concat();
    assert_eq!(writer.bytes(), expected);
    let read = Messages(writer.bytes()).next().unwrap();
    assert_eq!((read.kind, read.flags, read.sequence), (0x0a09, 0x405, 7));
    assert_eq!(read.attributes().text(1), Some("pm"));
    assert_eq!(read.attributes().nested(2).u32(3), Some(0x0102_0304));
}

#[test]
fn attributes_are_padded_and_nested() {
    let mut writer = Writer::default();
    let message = writer.message(0x0102, NLM_F_REQUEST | NLM_F_ACK, 7, 2, 0);
    writer.put(5, &[9]);
    writer.nested(1, |inner| inner.put(2, &[1, 2, 3, 4]));
    writer.end_message(message);
    let mut expected = Vec::new();
    expected.extend(40_u32.to_ne_bytes());
    expected.extend(0x0102_u16.to_ne_bytes());
    expected.extend(5_u16.to_ne_bytes());
    expected.extend(7_u32.to_ne_bytes());
    expected.extend([0; 4]);
    expected.extend([2, 0, 0, 0]);
    expected.extend(5_u16.to_ne_bytes());
    expected.extend(5_u16.to_ne_bytes());
    expected.extend([9, 0, 0, 0]);
    expected.extend(12_u16.to_ne_bytes());
    expected.extend(0x8001_u16.to_ne_bytes());
    expected.extend(8_u16.to_ne_bytes());
    expected.extend(2_u16.to_ne_bytes());
    expected.extend([1, 2, 3, 4]);
    assert_eq!(writer.bytes(), expected);
}

#[test]
fn lengths_that_lie_end_the_reading() {
    let mut writer = Writer::default();
    for number in [1, 2] {
        let message = writer.message(number, 0, number.into(), 0, 0);
        writer.end_message(message);
    }
    let mut bytes = writer.into_bytes();
    assert_eq!(Messages(&bytes).count(), 2);
    bytes[20..24].copy_from_slice(&15_u32.to_ne_bytes());
    assert_eq!(Messages(&bytes).count(), 1, "shorter than its header");
    bytes[20..24].copy_from_slice(&21_u32.to_ne_bytes());
    assert_eq!(Messages(&bytes).count(), 1, "longer than the datagram");
    assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0);
    assert_eq!(Attributes(&[4, 0, 1, 0, 9]).count(), 1);
}

#[test]
fn errors_are_read_as_positive_numbers() {
    let error = |payload: &[u8]| {
        let message = Message {
            kind: NLMSG_ERROR,
            flags: 0,
            sequence: 1,
            port: 0,
            payload,
        };
        message.error()
    };
    assert_eq!(error(&(-2_i32).to_ne_bytes()), 2);
    assert_eq!(error(&0_i32.to_ne_bytes()), 0);
    assert_eq!(error(&i32::MIN.to_ne_bytes()), i32::MAX);
    assert_eq!(error(&[]), 0);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        kind in any::<u16>(), flags in any::<u16>(), sequence in any::<u32>(),
        family in any::<u8>(), resource in any::<u16>(),
        values in prop::collection::vec((0..1000_u16, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let mut writer = Writer::default();
        for _ in 0..2 {
            let message = writer.message(kind, flags, sequence, family, resource);
            for (kind, value) in &values {
                writer.put(*kind, value);
                writer.nested(*kind, |inner| inner.put(*kind, value));
            }
            writer.end_message(message);
        }
        prop_assert_eq!(Messages(writer.bytes()).count(), 2);
        for message in Messages(writer.bytes()) {
            prop_assert_eq!((message.kind, message.flags, message.sequence), (kind, flags, sequence));
            let mut read = message.attributes();
            for (kind, value) in &values {
                prop_assert_eq!(read.next(), Some((*kind, value.as_slice())));
                let (outer, content) = read.next().unwrap();
                prop_assert_eq!(outer, *kind);
                prop_assert_eq!(Attributes(content).collect::<Vec<_>>(), [(*kind, value.as_slice())]);
            }
            prop_assert_eq!(read.next(), None);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for message in Messages(&bytes) {
            prop_assert!(message.payload.len() <= bytes.len());
            let _ = message.error();
            for (kind, value) in message.attributes() {
                let _ = (kind, Attributes(value).count());
            }
        }
        let attributes = Attributes(&bytes);
        let _ = (attributes.u32(1), attributes.u64(1), attributes.text(1), attributes.nested(1).count());
    }
}
