//! Generic netlink (`NETLINK_GENERIC`): its families have names, and numbers that differ from boot to boot.

use std::io;

use super::attribute::{Message, NLM_F_ACK, NLM_F_REQUEST, Writer};
use super::conversation::{Answer, Conversation};

/// The family that knows the others (`GENL_ID_CTRL`).
const CONTROL: u16 = 16;
const CONTROL_VERSION: u8 = 1;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `struct genlmsghdr`.
#[must_use]
pub fn header(command: u8, version: u8) -> [u8; 4] {
    [command, version, 0, 0]
}

/// The command of a message of a family.
#[must_use]
pub fn command(message: &Message<'_>) -> Option<u8> {
    message.payload.first().copied()
}

/// The request for a family's number. A kernel with modules loads the one that has the family, if the process may
/// (`ctrl_getfamily`).
#[must_use]
pub fn family_request(name: &str, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let header = header(GET_FAMILY, CONTROL_VERSION);
    let begun = writer.begin(CONTROL, NLM_F_REQUEST | NLM_F_ACK, sequence, &header);
    writer.put_text(FAMILY_NAME, name);
    writer.end_message(begun);
    writer.into_bytes()
}

/// The family's number in the answer: the type of its messages.
#[must_use]
pub fn family_id(message: &Message<'_>) -> Option<u16> {
    message.attributes().host_u16(FAMILY_ID)
}

/// Asks for a family's number: none with the answer that says why.
pub(crate) fn resolve(conversation: &mut Conversation, name: &str) -> io::Result<(Option<u16>, Answer)> {
    let sequence = conversation.number();
    let mut found = None;
    let answer = conversation.ask(&family_request(name, sequence), sequence, |message| {
        found = found.or(family_id(message));
    })?;
    Ok((found, answer))
}

#[cfg(test)]
mod tests {
    use super::super::attribute::Messages;
    use super::*;

    #[test]
    fn a_family_is_asked_for_by_its_name() {
        let expected = [
            &32_u32.to_ne_bytes()[..],
            &16_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &[0, 0, 0, 0, 3, 1, 0, 0],
            &9_u16.to_ne_bytes(),
            &2_u16.to_ne_bytes(),
            b"IPVS\0\0\0\0",
        ]
        .concat();
        assert_eq!(family_request("IPVS", 7), expected);
    }

    #[test]
    fn its_number_is_read() {
        let mut writer = Writer::default();
        let begun = writer.begin(CONTROL, 0, 1, &header(1, 2));
        writer.put_text(FAMILY_NAME, "IPVS");
        writer.put_host_u16(FAMILY_ID, 31);
        writer.end_message(begun);
        let message = Messages(writer.bytes()).next().unwrap();
        assert_eq!((command(&message), family_id(&message)), (Some(1), Some(31)));
    }
}
