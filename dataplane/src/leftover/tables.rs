//! Reading kube-proxy's rules out of nf_tables.

use super::Leftover;
use super::verdicts::{Rules, verdicts};
use crate::iptables::kube_proxy::is_kube_proxys;
use crate::model::Family;
use crate::netlink::expression::{Course, Verdict};
use crate::netlink::nftables::answer::{self, BaseRead};
use crate::netlink::nftables::{Listing, TABLE_DORMANT, TableName, Value};
use crate::netlink::socket::{NetlinkError, Socket};

/// What kube-proxy calls its table, in each family.
pub(super) const TABLE: &str = "kube-proxy";
/// iptables' tables that it has chains in.
const IPTABLES: [&str; 2] = ["nat", "filter"];

/// What the tables of a family hold of kube-proxy's.
#[derive(Clone, Debug, Default)]
pub(super) struct InTables {
    /// Its own table.
    pub(super) table: Option<Leftover>,
    /// Whether there are chains of its nf_tables variant of iptables.
    pub(super) iptables: bool,
}

/// The family's name in nft's commands.
pub(super) fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Reads until nobody changed anything meanwhile; returned with the ruleset's generation.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn read(socket: &mut Socket, family: Family) -> Result<(u32, InTables), NetlinkError> {
    socket.steadily(|socket, _| read_once(socket, family))
}

fn read_once(socket: &mut Socket, family: Family) -> Result<InTables, NetlinkError> {
    let table = TableName::new(family, TABLE);
    let (mut flags, mut iptables) = (None, false);
    socket.list(
        table,
        Listing::Tables,
        || (),
        |message| match answer::table(message) {
            Some((TABLE, found)) => flags = Some(found),
            Some((name, _)) => iptables |= IPTABLES.contains(&name),
            None => (),
        },
    )?;
    if flags.is_none() && !iptables {
        return Ok(InTables::default());
    }
    let bases = std::cell::RefCell::new(Vec::new());
    let mut found = InTables::default();
    socket.list(
        table,
        Listing::Chains,
        || bases.borrow_mut().clear(),
        |message| {
            let Some(chain) = answer::chain(message) else {
                return;
            };
            if chain.table == TABLE {
                let base = chain.base.map(|base| (chain.name.to_owned(), base));
                bases.borrow_mut().extend(base);
            } else if IPTABLES.contains(&chain.table) {
                found.iptables |= is_kube_proxys(chain.name);
            }
        },
    )?;
    if let Some(flags) = flags {
        // The chains of a table that sleeps hang nowhere.
        let awake = flags & TABLE_DORMANT == 0;
        let bases: Vec<(String, BaseRead)> = bases.into_inner();
        let bases = if awake { bases.as_slice() } else { &[] };
        let verdicts = verdicts(family, bases, &mut InKernel { socket, table })?;
        found.table = Some(Leftover::of_table(family, verdicts));
    }
    Ok(found)
}

/// The table in the kernel.
struct InKernel<'a> {
    socket: &'a mut Socket,
    table: TableName,
}

impl Rules for InKernel<'_> {
    type Error = NetlinkError;

    fn rules(&mut self, chain: &str) -> Result<Vec<Course>, NetlinkError> {
        let rules = std::cell::RefCell::new(Vec::new());
        let wanted = (self.table.name, chain);
        self.socket.list(
            self.table,
            Listing::RulesOf(chain),
            || rules.borrow_mut().clear(),
            |message| {
                if let Some(rule) = answer::rule(message).filter(|rule| (rule.table, rule.chain) == wanted) {
                    rules.borrow_mut().push(Course::read(rule.expressions));
                }
            },
        )?;
        Ok(rules.into_inner())
    }

    fn elements(&mut self, map: &str) -> Result<Vec<(Vec<u8>, Verdict)>, NetlinkError> {
        let elements = std::cell::RefCell::new(Vec::new());
        self.socket.list(
            self.table,
            Listing::Elements(map),
            || elements.borrow_mut().clear(),
            |message| {
                answer::elements(message, |element| {
                    if let Some(Value::Verdict(verdict)) = element.value {
                        elements.borrow_mut().push((element.key, verdict));
                    }
                });
            },
        )?;
        Ok(elements.into_inner())
    }
}
