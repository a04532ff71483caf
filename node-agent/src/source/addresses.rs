//! The addresses of the node's interfaces, read over rtnetlink and followed as they change.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::{sync::mpsc::Sender, time::sleep};

use super::Event;

/// Changes come in bursts; this much is waited for more of them before everything is read anew.
const SETTLE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);

/// Sends the node's addresses now and after every change, for as long as `events` is open.
pub async fn follow(events: Sender<Event>) {
    while !events.is_closed() {
        if let Err(error) = session(&events).await {
            tracing::warn!(%error, "following the node's addresses failed: trying again in {} s", RETRY.as_secs());
        }
        sleep(RETRY).await;
    }
}

/// One netlink connection. A lost notification (ENOBUFS) does no harm: every notification reads everything anew.
async fn session(events: &Sender<Event>) -> Result<(), rtnetlink::Error> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = new_multicast_connection(&groups)
        .map_err(|error| rtnetlink::Error::NetlinkError(error_message(&error)))?;
    let connection = tokio::spawn(connection);
    let mut known = None;
    loop {
        let present = read(&handle).await?;
        if known.as_ref() != Some(&present) {
            if events
                .send(Event::Addresses(present.iter().copied().collect()))
                .await
                .is_err()
            {
                break;
            }
            known = Some(present);
        }
        if changes.next().await.is_none() {
            break;
        }
        sleep(SETTLE).await;
        while changes.try_recv().is_ok() {}
    }
    connection.abort();
    Ok(())
}

fn error_message(error: &std::io::Error) -> rtnetlink::packet_core::ErrorMessage {
    let mut message = rtnetlink::packet_core::ErrorMessage::default();
    message.code = error
        .raw_os_error()
        .and_then(|code| std::num::NonZeroI32::new(-code));
    message
}

async fn read(handle: &Handle) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
    let mut found = BTreeSet::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        found.extend(usable(&message));
    }
    Ok(found)
}

/// The address of a message, when others can reach the node by it.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface Address is the other end, and Local is ours.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(own) if address.is_none() => address = Some(*own),
            _ => {}
        }
    }
    address.filter(|address| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    })
}
