//! Messages of nf_tables (`NFNL_SUBSYS_NFTABLES`): transactions, and what dumps answer.
//!
//! A transaction is one datagram: `NFNL_MSG_BATCH_BEGIN`, the changes, `NFNL_MSG_BATCH_END`. The kernel takes all of it
//! or nothing (`nfnetlink_rcv_batch`).

use super::attribute::{NLM_F_DUMP, NLM_F_REQUEST, Writer};
use super::expression::Verdict;
use crate::model::Family;

pub mod answer;
mod batch;

pub use batch::{Batch, Transaction};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
/// `NFT_MSG_NEWGEN`: tells that a transaction was committed.
pub(super) const NEWGEN: u16 = 15;
const GETGEN: u16 = 16;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;

/// A set's `NFT_SET_ANONYMOUS`.
pub const SET_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_CONSTANT`.
pub const SET_CONSTANT: u32 = 0x2;
/// `NFT_SET_INTERVAL`.
pub const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`.
pub const SET_MAP: u32 = 0x8;
/// `NFT_SET_TIMEOUT`.
pub const SET_TIMEOUT: u32 = 0x10;
/// `NFT_SET_EVAL`: the packet path changes it.
pub const SET_EVAL: u32 = 0x20;
/// `NFT_SET_CONCAT`.
pub const SET_CONCAT: u32 = 0x80;
/// A table's `NFT_TABLE_F_DORMANT`: its base chains do not hang at their hooks.
pub const TABLE_DORMANT: u32 = 0x1;

/// The type that nft has for a verdict as a map's data (`NFT_DATA_VERDICT`).
pub const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// A table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableName {
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub family: u8,
    /// Its name.
    pub name: &'static str,
}

impl TableName {
    /// The table of this name in a family.
    #[must_use]
    pub fn new(family: Family, name: &'static str) -> Self {
        Self {
            family: nfproto(family),
            name,
        }
    }
}

/// The family's number in netfilter: `NFPROTO_IPV4` or `NFPROTO_IPV6`.
#[must_use]
pub fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// `NF_INET_PRE_ROUTING` (0) to `NF_INET_POST_ROUTING` (4).
    pub number: u32,
    /// Smaller comes first.
    pub priority: i32,
}

/// What a set or map is made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: String,
    /// `SET_*`.
    pub flags: u32,
    /// nft's number for the key's type: only for its listings.
    pub key_type: u32,
    /// In bytes.
    pub key_length: u32,
    /// The type and length of a map's data.
    pub data: Option<(u32, u32)>,
    /// The most that it may have; none for as many as there are. The kernel makes buckets for so many at once.
    pub size: Option<u32>,
    /// Lengths of the parts of a key, for intervals of several parts.
    pub fields: Vec<u32>,
    /// What nft keeps to list it by (libnftnl's udata).
    pub userdata: Vec<u8>,
    /// For an anonymous set, its number in the transaction.
    pub id: u32,
}

/// An element: a key and what it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, its parts padded to four bytes.
    pub key: Vec<u8>,
    /// The last key of an interval.
    pub key_end: Option<Vec<u8>>,
    /// A map's value.
    pub value: Option<Value>,
}

/// The value of a map's element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Data.
    Data(Vec<u8>),
    /// Where a packet goes.
    Verdict(Verdict),
}

/// What a dump can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing<'a> {
    /// All tables of the family.
    Tables,
    /// All chains of the table.
    Chains,
    /// All rules of the table.
    Rules,
    /// The rules of one chain.
    RulesOf(&'a str),
    /// All sets of the table.
    Sets,
    /// The elements of a set.
    Elements(&'a str),
    /// The counters of the table.
    Counters,
}

/// The request for a dump.
#[must_use]
pub fn request(table: TableName, listing: Listing<'_>, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = match listing {
        Listing::Tables => GETTABLE,
        Listing::Chains => GETCHAIN,
        Listing::Rules | Listing::RulesOf(_) => GETRULE,
        Listing::Sets => GETSET,
        Listing::Elements(_) => GETSETELEM,
        Listing::Counters => GETOBJ,
    };
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let begun = writer.message((SUBSYSTEM << 8) | kind, flags, sequence, table.family, 0);
    match listing {
        Listing::Tables => (),
        // nf_tables dumps chains of all tables, whatever is asked for.
        Listing::Chains | Listing::Rules | Listing::Sets | Listing::Counters => {
            writer.put_text(1, table.name)
        }
        // NFTA_RULE_CHAIN, NFTA_SET_ELEM_LIST_SET.
        Listing::RulesOf(name) | Listing::Elements(name) => {
            writer.put_text(1, table.name);
            writer.put_text(2, name);
        }
    }
    writer.end_message(begun);
    writer.into_bytes()
}

/// The request for the ruleset's generation.
#[must_use]
pub fn generation_request(sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let begun = writer.message((SUBSYSTEM << 8) | GETGEN, NLM_F_REQUEST, sequence, 0, 0);
    writer.end_message(begun);
    writer.into_bytes()
}

#[cfg(test)]
mod tests;
