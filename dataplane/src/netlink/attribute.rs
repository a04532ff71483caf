//! Netlink messages and their attributes (`struct nlmsghdr`, `struct nlattr`): written into a buffer, read from a slice.
//!
//! A length in an attribute has 16 bits. Whoever writes lists that may be longer splits them
//! ([`Writer::has_room`]); what is read is never trusted.

/// Size of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Size of `struct nfgenmsg`, behind the header of every message of a netfilter subsystem, and of `struct genlmsghdr`,
/// which generic netlink has in its place.
pub const FAMILY_HEADER: usize = 4;

/// Type of the message that acknowledges or refuses a request.
pub const NLMSG_ERROR: u16 = 2;
/// Type of the message that ends a dump.
pub const NLMSG_DONE: u16 = 3;
/// Flag of every request.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Flag of a request that asks for an acknowledgement.
pub const NLM_F_ACK: u16 = 0x4;
/// Flag of a dump that was disturbed, so that it may not be complete.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// Flags of a request for everything there is (`NLM_F_ROOT | NLM_F_MATCH`).
pub const NLM_F_DUMP: u16 = 0x300;
/// The request puts something in the place of what is there.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Flag of a request that must not meet what is there already.
pub const NLM_F_EXCL: u16 = 0x200;
/// Flag of a request that makes what is not there.
pub const NLM_F_CREATE: u16 = 0x400;
/// Flag of a request that adds behind what is there.
pub const NLM_F_APPEND: u16 = 0x800;

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

/// The bytes at a place, when there are so many.
#[must_use]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
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
        let [high, low] = resource.to_be_bytes();
        self.begin(kind, flags, sequence, &[family, 0, high, low])
    }

    /// Begins a message with the header of its subsystem, whose length is a multiple of four.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32, header: &[u8]) -> Begun {
        let begun = Begun(self.bytes.len());
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend_from_slice(header);
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

    /// An attribute with these attributes in it.
    pub fn nested(&mut self, kind: u16, attributes: impl FnOnce(&mut Self)) {
        let begun = self.nest(kind);
        attributes(self);
        self.end(begun);
    }

    /// Begins an attribute with attributes in it: a list that may become too long for one.
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

    /// A number in the byte order of the machine, as IPVS and rtnetlink have theirs.
    pub fn put_host_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// The same with 32 bits.
    pub fn put_host_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
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

    /// A number in the byte order of the machine.
    #[must_use]
    pub fn host_u16(self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// The same with 32 bits.
    #[must_use]
    pub fn host_u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// The same with 64 bits.
    #[must_use]
    pub fn host_u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(self.get(kind)?.try_into().ok()?))
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
        let length = usize::from(u16::from_ne_bytes(array(self.0, 0)?));
        let kind = u16::from_ne_bytes(array(self.0, 2)?) & TYPE_MASK;
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
    /// `nlmsg_pid`: the port of the sender, or in a notification, of whoever caused it.
    pub port: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a `struct nfgenmsg`.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// The number that a message of type [`NLMSG_ERROR`] or [`NLMSG_DONE`] carries: an error as a positive number, 0
    /// for success. A message without one has ended well.
    #[must_use]
    pub fn error(&self) -> i32 {
        array(self.payload, 0).map_or(0, |bytes| i32::from_ne_bytes(bytes).saturating_neg())
    }
}

/// The messages in a datagram; what is cut off ends them.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(array(self.0, 0)?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(array(self.0, 4)?),
            flags: u16::from_ne_bytes(array(self.0, 6)?),
            sequence: u32::from_ne_bytes(array(self.0, 8)?),
            port: u32::from_ne_bytes(array(self.0, 12)?),
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests;
