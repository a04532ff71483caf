//! Netlink messages and their attributes (`struct nlmsghdr`, `struct nlattr`): written into a buffer, read from a slice.
//!
//! A length in an attribute has 16 bits. Whoever writes lists that may be longer splits them
//! ([`Writer::has_room`]); what is read is never trusted.

/// Size of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Size of `struct nfgenmsg`, behind the header of every message of a netfilter subsystem.
pub const FAMILY_HEADER: usize = 4;
/// Size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// The attribute has attributes in it (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// The bits that are no flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// How long the value of an attribute may become before a list is split: well below 65,535.
const ROOM: usize = 60_000;

/// Netlink messages and attributes begin at multiples of four (`NLMSG_ALIGN`, `NLA_ALIGN`).
#[must_use]
pub fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Writes messages one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

/// Where a message or attribute began.
#[derive(Clone, Copy, Debug)]
#[must_use = "it has to be ended"]
pub struct Begun(usize);

impl Writer {
    /// Everything written so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Begins a message with a `struct nfgenmsg`.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Begun {
        let begun = Begun(self.bytes.len());
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        begun
    }

    /// Ends a message.
    pub fn end_message(&mut self, begun: Begun) {
        let length = u32::try_from(self.bytes.len() - begun.0).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(begun.0..begun.0 + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Adds flags to a message that has begun.
    pub fn add_flags(&mut self, begun: Begun, flags: u16) {
        if let Some(place) = self.bytes.get_mut(begun.0 + 6..begun.0 + 8) {
            for (byte, more) in place.iter_mut().zip(flags.to_ne_bytes()) {
                *byte |= more;
            }
        }
    }

    /// Begins an attribute with attributes in it.
    pub fn nest(&mut self, kind: u16) -> Begun {
        let begun = Begun(self.bytes.len());
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        begun
    }

    /// Ends such an attribute.
    pub fn end(&mut self, begun: Begun) {
        let length = u16::try_from(self.bytes.len() - begun.0).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(begun.0..begun.0 + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Whether a list that began there may become longer by another small entry.
    #[must_use]
    pub fn has_room(&self, begun: Begun) -> bool {
        self.bytes.len() - begun.0 < ROOM
    }

    /// An attribute with these bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// A number in network byte order, as nf_tables and conntrack have theirs.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// The same with 64 bits.
    pub fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text, with the zero at its end.
    pub fn put_text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes);
    }
}

/// The attributes in a value, in their order; what is cut off ends them.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    #[must_use]
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find(|(of, _)| *of == kind)
            .map(|(_, value)| value)
    }

    /// The attributes in an attribute; none when it is not there.
    #[must_use]
    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }

    /// A number in network byte order.
    #[must_use]
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// The same with 64 bits.
    #[must_use]
    pub fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text, up to the zero at its end; none when it is no UTF-8.
    #[must_use]
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(bytes.get(..end)?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a `struct nfgenmsg`.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(FAMILY_HEADER..).unwrap_or_default())
    }
}

/// The messages in a datagram; what is cut off ends them.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(self.0.get(..4)?.try_into().ok()?) as usize;
        let header = self.0.get(..HEADER)?;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(header.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(header.get(8..12)?.try_into().ok()?),
            payload,
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
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

    proptest! {
        #[test]
        fn what_is_written_is_read(attributes in prop::collection::vec((1_u16..100, prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut writer = Writer::default();
            let message = writer.message(1, 2, 3, 4, 5);
            attributes.iter().for_each(|(kind, value)| writer.put(*kind, value));
            writer.end_message(message);
            let read: Vec<_> = Messages(writer.bytes()).collect();
            prop_assert_eq!(read.len(), 1);
            let read: Vec<_> = read[0].attributes().map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, attributes);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages(&bytes) {
                for (kind, value) in message.attributes() {
                    let _ = (kind, Attributes(value).count());
                }
            }
            let attributes = Attributes(&bytes);
            let _ = (attributes.u32(1), attributes.u64(1), attributes.text(1), attributes.nested(1).count());
        }
    }
}
