//! The expressions of nf_tables rules that we use, as `NFTA_RULE_EXPRESSIONS` has them.
//!
//! Register numbers are those of 32-bit registers: 0 here is `NFT_REG32_00`. A key of several parts lies in registers
//! one behind the other, each part beginning at a new one.

use super::attribute::{Attributes, Writer};

/// A 32-bit register, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    /// The number as the kernel gives it back (`nft_dump_register`): the verdict register is 0, a multiple of four is
    /// one of the old 128-bit registers, 1 to 4, and the others count from 8.
    fn number(self) -> u32 {
        if self.0.is_multiple_of(4) {
            u32::from(self.0 / 4) + 1
        } else {
            u32::from(self.0) + 8
        }
    }

    /// The register behind a value of this many bytes.
    #[must_use]
    pub fn after(self, bytes: u8) -> Self {
        Self(self.0 + bytes.div_ceil(4))
    }
}

const VERDICT_REGISTER: u32 = 0;

/// What `meta` reads and writes (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// `NFT_META_PRIORITY`.
    Priority = 2,
    /// `NFT_META_MARK`.
    Mark = 3,
    /// `NFT_META_IIFNAME`.
    InterfaceName = 6,
    /// `NFT_META_L4PROTO`.
    Protocol = 16,
}

/// What `ct` reads (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    /// `NFT_CT_STATE`.
    State = 0,
    /// `NFT_CT_STATUS`.
    Status = 2,
}

/// Where a payload's offset counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The IP header.
    Network = 1,
    /// The header behind it.
    Transport = 2,
}

/// Which address `fib` looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FibAddress {
    /// The source.
    Source = 1,
    /// The destination.
    Destination = 2,
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes on to the next hook.
    Accept,
    /// It ends.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain, for good.
    Goto(String),
}

/// How a set is changed from the packet path (`enum nft_dynset_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicOp {
    /// `NFT_DYNSET_OP_ADD`.
    Add = 0,
    /// `NFT_DYNSET_OP_UPDATE`: adds, or starts the timeout again.
    Update = 1,
    /// `NFT_DYNSET_OP_DELETE`.
    Delete = 2,
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `NFT_REJECT_TCP_RST`.
    TcpReset,
    /// `NFT_REJECT_ICMP_UNREACH` with this code.
    Icmp(u8),
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Reads metadata of the packet.
    MetaLoad(Meta, Register),
    /// Writes it.
    MetaSet(Meta, Register),
    /// Reads connection tracking.
    CtLoad(Ct, Register),
    /// Reads `length` bytes.
    Payload {
        /// Where `offset` counts from.
        base: Base,
        /// In bytes.
        offset: u8,
        /// In bytes.
        length: u8,
        /// The first register.
        to: Register,
    },
    /// `to = (from & mask) ^ xor`, in place.
    Bitwise {
        /// Register.
        at: Register,
        /// As many bytes as are computed with.
        mask: Vec<u8>,
        /// As many.
        xor: Vec<u8>,
    },
    /// A 32-bit number from the machine's byte order to the network's, in place.
    ToNetworkOrder(Register),
    /// Goes on only if the value is, or is not, this.
    Compare {
        /// Register.
        at: Register,
        /// Whether it must be.
        equal: bool,
        /// The value.
        value: Vec<u8>,
    },
    /// Goes on only if the value, in network byte order, is this or more.
    AtLeast(Register, Vec<u8>),
    /// Goes on only if the set has the key; with a map, `to` gets what it has there.
    Lookup {
        /// Name of the set or map.
        set: String,
        /// The number of an anonymous set made in the same transaction, otherwise 0 (`NFTA_LOOKUP_SET_ID`).
        id: u32,
        /// The key.
        key: Register,
        /// Where the value of a map goes.
        to: Option<Register>,
    },
    /// Looks a verdict up and follows it.
    LookupVerdict {
        /// Name of the map.
        set: String,
        /// The key.
        key: Register,
    },
    /// A random number below this.
    Random {
        /// Where it goes.
        to: Register,
        /// What it is below; at least 1.
        below: u32,
    },
    /// Changes a set.
    Dynamic {
        /// What is done.
        op: DynamicOp,
        /// Name of the map.
        set: String,
        /// The key.
        key: Register,
        /// The value.
        value: Register,
        /// In milliseconds; 0 for the set's own.
        timeout: u64,
    },
    /// The type of an address (`RTN_LOCAL` is 2).
    FibType(FibAddress, Register),
    /// Counts in a named counter.
    Counter(String),
    /// Translates the destination to an address and a port.
    Dnat {
        /// The family (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
        family: u8,
        /// The address.
        address: Register,
        /// The port.
        port: Register,
    },
    /// Translates the source to the address of the interface that the packet leaves by, with a random port.
    Masquerade,
    /// Refuses.
    Reject(Refusal),
    /// A number into a register.
    Immediate(Register, Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An entry of a list (`NFTA_LIST_ELEM`).
pub(super) const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// Data that is no verdict (`NFTA_DATA_VALUE`).
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`.
const MAP_ADDRESS_AND_PORT: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM_FULLY: u32 = 16;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_COUNTER: u32 = 1;
/// `NFT_NAT_DNAT`.
const NAT_DNAT: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_ADDRESS_TYPE: u32 = 3;

/// Writes data as an attribute.
pub(super) fn put_data(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nested(kind, |data| data.put(DATA_VALUE, value));
}

impl Expression {
    /// Writes it as an entry of a rule's list.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(LIST_ELEM, |element| {
            element.put_text(EXPR_NAME, self.name());
            element.nested(EXPR_DATA, |data| self.write_data(data));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::MetaLoad(..) | Self::MetaSet(..) => "meta",
            Self::CtLoad(..) => "ct",
            Self::Payload { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::ToNetworkOrder(_) => "byteorder",
            Self::Compare { .. } | Self::AtLeast(..) => "cmp",
            Self::Lookup { .. } | Self::LookupVerdict { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Dynamic { .. } => "dynset",
            Self::FibType(..) => "fib",
            Self::Counter(_) => "objref",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
            Self::Immediate(..) | Self::Verdict(_) => "immediate",
        }
    }

    /// The attributes, in the order in which the kernel gives them back (`nft_*_dump`).
    fn write_data(&self, writer: &mut Writer) {
        match self {
            // NFTA_META_DREG, _KEY, _SREG.
            Self::MetaLoad(key, to) => {
                writer.put_u32(2, *key as u32);
                writer.put_u32(1, to.number());
            }
            Self::MetaSet(key, from) => {
                writer.put_u32(2, *key as u32);
                writer.put_u32(3, from.number());
            }
            // NFTA_CT_DREG, _KEY.
            Self::CtLoad(key, to) => {
                writer.put_u32(1, to.number());
                writer.put_u32(2, *key as u32);
            }
            // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN.
            Self::Payload {
                base,
                offset,
                length,
                to,
            } => {
                writer.put_u32(1, to.number());
                writer.put_u32(2, *base as u32);
                writer.put_u32(3, u32::from(*offset));
                writer.put_u32(4, u32::from(*length));
            }
            // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR. Without an operation it is NFT_BITWISE_MASK_XOR.
            Self::Bitwise { at, mask, xor } => {
                writer.put_u32(1, at.number());
                writer.put_u32(2, at.number());
                writer.put_u32(3, u32::try_from(mask.len()).unwrap_or(0));
                put_data(writer, 4, mask);
                put_data(writer, 5, xor);
            }
            // NFTA_BYTEORDER_SREG, _DREG, _OP (NFT_BYTEORDER_HTON), _LEN, _SIZE.
            Self::ToNetworkOrder(at) => {
                writer.put_u32(1, at.number());
                writer.put_u32(2, at.number());
                writer.put_u32(3, 1);
                writer.put_u32(4, 4);
                writer.put_u32(5, 4);
            }
            // NFTA_CMP_SREG, _OP (NFT_CMP_EQ, _NEQ, _GTE), _DATA.
            Self::Compare { at, equal, value } => {
                writer.put_u32(1, at.number());
                writer.put_u32(2, u32::from(!equal));
                put_data(writer, 3, value);
            }
            Self::AtLeast(at, value) => {
                writer.put_u32(1, at.number());
                writer.put_u32(2, 5);
                put_data(writer, 3, value);
            }
            // NFTA_LOOKUP_SET, _SREG, _DREG, _SET_ID.
            Self::Lookup { set, id, key, to } => {
                writer.put_text(1, set);
                writer.put_u32(2, key.number());
                if let Some(to) = to {
                    writer.put_u32(3, to.number());
                }
                if *id != 0 {
                    writer.put_u32(4, *id);
                }
            }
            Self::LookupVerdict { set, key } => {
                writer.put_text(1, set);
                writer.put_u32(2, key.number());
                writer.put_u32(3, VERDICT_REGISTER);
            }
            // NFTA_NG_DREG, _MODULUS, _TYPE (NFT_NG_RANDOM).
            Self::Random { to, below } => {
                writer.put_u32(1, to.number());
                writer.put_u32(2, *below);
                writer.put_u32(3, 1);
            }
            // NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _SREG_DATA, _TIMEOUT.
            Self::Dynamic {
                op,
                set,
                key,
                value,
                timeout,
            } => {
                writer.put_u32(4, key.number());
                writer.put_u32(5, value.number());
                writer.put_u32(3, *op as u32);
                writer.put_text(1, set);
                if *timeout != 0 {
                    writer.put_u64(6, *timeout);
                }
            }
            // NFTA_FIB_DREG, _RESULT, _FLAGS.
            Self::FibType(address, to) => {
                writer.put_u32(1, to.number());
                writer.put_u32(2, FIB_ADDRESS_TYPE);
                writer.put_u32(3, *address as u32);
            }
            // NFTA_OBJREF_IMM_TYPE, _IMM_NAME.
            Self::Counter(name) => {
                writer.put_text(2, name);
                writer.put_u32(1, OBJECT_COUNTER);
            }
            // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN, _FLAGS.
            Self::Dnat {
                family,
                address,
                port,
            } => {
                writer.put_u32(1, NAT_DNAT);
                writer.put_u32(2, u32::from(*family));
                writer.put_u32(3, address.number());
                writer.put_u32(5, port.number());
                writer.put_u32(7, MAP_ADDRESS_AND_PORT);
            }
            // NFTA_MASQ_FLAGS.
            Self::Masquerade => writer.put_u32(1, RANDOM_FULLY),
            // NFTA_REJECT_TYPE, _ICMP_CODE.
            Self::Reject(refusal) => match refusal {
                Refusal::Icmp(code) => {
                    writer.put_u32(1, 0);
                    writer.put(2, &[*code]);
                }
                Refusal::TcpReset => writer.put_u32(1, 1),
            },
            // NFTA_IMMEDIATE_DREG, _DATA.
            Self::Immediate(to, value) => {
                writer.put_u32(1, to.number());
                put_data(writer, 2, value);
            }
            Self::Verdict(verdict) => {
                writer.put_u32(1, VERDICT_REGISTER);
                writer.nested(2, |data| verdict.write(data));
            }
        }
    }
}

/// Of somebody else's rule (`NFTA_RULE_EXPRESSIONS`), what matters to where packets may end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Whether it looks at the packet's headers or whose its addresses are, so that it is about some packets only.
    pub reads_packet: bool,
    /// Whether it refuses.
    pub refuses: bool,
    /// Its verdict, if it always has the same one.
    pub verdict: Option<Verdict>,
    /// The map that it looks a verdict up in.
    pub map: Option<String>,
}

impl Course {
    /// Reads a rule. What is not known is passed over.
    #[must_use]
    pub fn read(rule: &[u8]) -> Self {
        let mut course = Self::default();
        for (_, expression) in Attributes(rule) {
            let expression = Attributes(expression);
            let data = expression.nested(EXPR_DATA);
            match expression.text(EXPR_NAME) {
                Some("payload" | "fib") => course.reads_packet = true,
                Some("reject") => course.refuses = true,
                // NFTA_IMMEDIATE_DREG, _DATA.
                Some("immediate") if data.u32(1) == Some(VERDICT_REGISTER) => {
                    course.verdict = data.get(2).and_then(Verdict::read);
                }
                // NFTA_LOOKUP_SET, _DREG.
                Some("lookup") if data.u32(3) == Some(VERDICT_REGISTER) => {
                    course.map = data.text(1).map(str::to_owned);
                }
                _ => (),
            }
        }
        course
    }
}

/// Whether a rule that was read (`NFTA_RULE_EXPRESSIONS`) is this one. Attributes that are not written here are passed
/// over: other kernels may have more of them. Anonymous sets are known by the beginning of their name only.
#[must_use]
pub fn is_rule(rule: &[Expression], read: &[u8]) -> bool {
    let mut writer = Writer::default();
    rule.iter().for_each(|expression| expression.write(&mut writer));
    let (ours, theirs) = (Attributes(writer.bytes()), Attributes(read));
    ours.count() == theirs.count()
        && ours.zip(theirs).all(|((_, ours), (_, theirs))| {
            let (ours, theirs) = (Attributes(ours), Attributes(theirs));
            let name = ours.text(EXPR_NAME);
            name == theirs.text(EXPR_NAME)
                && has_all(
                    name == Some("lookup"),
                    ours.nested(EXPR_DATA),
                    theirs.nested(EXPR_DATA),
                )
        })
}

/// What the name of an anonymous set begins with.
const ANONYMOUS: &str = "__set";

fn has_all(is_lookup: bool, ours: Attributes<'_>, theirs: Attributes<'_>) -> bool {
    let is_anonymous = |name: Option<&str>| name.is_some_and(|name| name.starts_with(ANONYMOUS));
    if is_lookup && is_anonymous(ours.text(1)) {
        // The set's name and number are made by the kernel.
        return is_anonymous(theirs.text(1)) && theirs.get(2) == ours.get(2);
    }
    let mut ours = ours;
    ours.all(|(kind, value)| {
        theirs
            .get(kind)
            .is_some_and(|other| other == value || has_nested(value, other))
    })
}

/// Whether two values hold the same attributes: the mark that they do so is set by some kernels only.
fn has_nested(ours: &[u8], theirs: &[u8]) -> bool {
    let (ours, theirs) = (Attributes(ours), Attributes(theirs));
    let count = ours.count();
    count > 0
        && count == theirs.count()
        && ours
            .zip(theirs)
            .all(|(ours, theirs)| ours.0 == theirs.0 && (ours.1 == theirs.1 || has_nested(ours.1, theirs.1)))
}

impl Verdict {
    /// Reads it from data (`NFTA_DATA_VERDICT`); none when the data is no verdict.
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        let verdict = Attributes(data).nested(DATA_VERDICT);
        let chain = || verdict.text(2).map(str::to_owned);
        // NFTA_VERDICT_CODE is a signed number.
        Some(match verdict.u32(1)?.cast_signed() {
            0 => Self::Drop,
            1 => Self::Accept,
            -3 => Self::Jump(chain()?),
            -4 => Self::Goto(chain()?),
            -5 => Self::Return,
            _ => return None,
        })
    }

    /// Writes it as `NFTA_DATA_VERDICT`.
    pub fn write(&self, writer: &mut Writer) {
        let (code, chain): (i32, Option<&str>) = match self {
            Self::Accept => (1, None),
            Self::Drop => (0, None),
            // NFT_RETURN, NFT_JUMP, NFT_GOTO.
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        writer.nested(DATA_VERDICT, |verdict| {
            // NFTA_VERDICT_CODE, _CHAIN.
            verdict.put(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.put_text(2, chain);
            }
        });
    }
}

#[cfg(test)]
mod tests;
