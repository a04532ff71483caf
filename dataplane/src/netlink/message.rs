//! Netlink messages and attributes as bytes: how requests are written, and answers read.
//!
//! A datagram holds messages, each a `struct nlmsghdr` with a payload; those of nfnetlink begin their payload with a
//! `struct nfgenmsg`, and attributes follow, which may hold attributes again. Lengths are those of the content, and
//! the next message or attribute begins at a multiple of four.

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
/// Size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// Type of the message that acknowledges or refuses a request.
pub const ERROR: u16 = 2;
/// Type of the message that ends a dump.
pub const DONE: u16 = 3;
/// Flag of every request.
pub const REQUEST: u16 = 1;
/// Flag that asks for an acknowledgement.
pub const ACK: u16 = 4;
/// Flag of a dump that was disturbed, so that it may not be complete.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// Flags that ask for everything there is (`NLM_F_ROOT | NLM_F_MATCH`).
pub const DUMP: u16 = 0x300;

/// Bit of an attribute's type that says that it holds attributes.
const NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that are not the type.
const TYPE_FLAGS: u16 = NESTED | (1 << 14);

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number that its request had.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes of a message of nfnetlink.
    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.payload.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// The number that an [`ERROR`] or [`DONE`] message carries: an error as a positive number, 0 for success. A
    /// message without one has ended well.
    #[must_use]
    pub fn error(&self) -> i32 {
        array(self.payload, 0).map_or(0, |bytes| i32::from_ne_bytes(bytes).saturating_neg())
    }
}

/// The messages of a datagram. What cannot be read ends them.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(array(rest, 0)?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(array(rest, 4)?),
            flags: u16::from_ne_bytes(array(rest, 6)?),
            sequence: u32::from_ne_bytes(array(rest, 8)?),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in these bytes, each as its type and its content. What cannot be read ends them.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?) & !TYPE_FLAGS;
        let content = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The bytes at a place, when there are so many.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Writes a datagram of nfnetlink messages.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// The datagram.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds a message. `family` is an address family of the kernel's, 0 for all.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        attributes: impl FnOnce(&mut Self),
    ) {
        let begin = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(sequence.to_ne_bytes());
        // The kernel knows whom to answer.
        self.0.extend([0; 4]);
        self.0.extend([family, 0, 0, 0]);
        attributes(self);
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.0[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds an attribute to the message that was begun last.
    pub fn attribute(&mut self, kind: u16, content: &[u8]) {
        self.raw_attribute(kind, |writer| writer.0.extend_from_slice(content));
    }

    /// Adds an attribute that holds attributes.
    pub fn nested(&mut self, kind: u16, attributes: impl FnOnce(&mut Self)) {
        self.raw_attribute(kind | NESTED, attributes);
    }

    fn raw_attribute(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let begin = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        content(self);
        // Nobody here writes an attribute of 64 KiB; the kernel would refuse one with a length that is too short.
        let length = u16::try_from(self.0.len() - begin).unwrap_or_default();
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_has_it() {
        let mut writer = Writer::default();
        writer.message(0x0102, REQUEST | ACK, 7, 2, |message| {
            message.attribute(5, &[9]);
            message.nested(1, |inner| inner.attribute(2, &[1, 2, 3, 4]));
        });
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
        writer.message(1, 0, 1, 0, |_| {});
        writer.message(2, 0, 2, 0, |_| {});
        let mut bytes = writer.bytes().to_vec();
        assert_eq!(messages(&bytes).count(), 2);
        bytes[20..24].copy_from_slice(&15_u32.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 1, "shorter than its header");
        bytes[20..24].copy_from_slice(&21_u32.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 1, "longer than the datagram");
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1, 0, 9]).count(), 1);
    }

    #[test]
    fn errors_are_read_as_positive_numbers() {
        let error = |payload: &[u8]| {
            let message = Message {
                kind: ERROR,
                flags: 0,
                sequence: 1,
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
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                prop_assert!(message.payload.len() <= bytes.len());
                let _ = message.error();
                for (_, content) in message.attributes() {
                    let _ = attributes(content).count();
                }
            }
            let _ = attributes(&bytes).count();
        }

        #[test]
        fn what_is_written_is_read(
            kind in any::<u16>(), flags in any::<u16>(), sequence in any::<u32>(),
            values in prop::collection::vec((0..1000_u16, prop::collection::vec(any::<u8>(), 0..9)), 0..6),
        ) {
            let mut writer = Writer::default();
            for _ in 0..2 {
                writer.message(kind, flags, sequence, 2, |message| {
                    for (kind, value) in &values {
                        message.attribute(*kind, value);
                        message.nested(*kind, |inner| inner.attribute(*kind, value));
                    }
                });
            }
            prop_assert_eq!(messages(writer.bytes()).count(), 2);
            for message in messages(writer.bytes()) {
                prop_assert_eq!((message.kind, message.flags, message.sequence), (kind, flags, sequence));
                let mut read = message.attributes();
                for (kind, value) in &values {
                    prop_assert_eq!(read.next(), Some((*kind, value.as_slice())));
                    let (outer, content) = read.next().unwrap();
                    prop_assert_eq!(outer, *kind);
                    prop_assert_eq!(attributes(content).next(), Some((*kind, value.as_slice())));
                }
                prop_assert_eq!(read.next(), None);
            }
        }
    }
}
