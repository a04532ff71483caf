//! What host and guest tell each other over the guest's serial line: a kind, the number of a process, bytes.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// Which process it is about; 0 where it is about none.
    pub(crate) process: u32,
    pub(crate) payload: Vec<u8>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $byte:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            fn byte(self) -> u8 {
                match self { $(Self::$kind => $byte,)* }
            }

            fn of(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    /// To the guest: mount this folder of the machine at its own path, to be written.
    Share = b'm',
    /// To the guest: start a process; words as [`Start`] has them.
    Start = b's',
    /// To the guest: input of a process; nothing ends it.
    Input = b'i',
    /// To the guest: a signal, by its number.
    Signal = b'k',
    /// To the guest: write everything and power off.
    PowerOff = b'p',
    /// To the host: it has booted.
    Ready = b'r',
    /// To the host: how many bytes of what it sent have been read.
    Took = b't',
    /// To the host, every second: it goes on.
    Alive = b'a',
    /// To the host: what a process wrote to stdout.
    Out = b'o',
    /// To the host: what a process wrote to stderr.
    Err = b'e',
    /// To the host: a process ended, with its status as wait(2) gives it. All that it wrote was sent before.
    Ended = b'x',
    /// To the host: why what it asked for cannot be done.
    Failed = b'f',
}

/// How many bytes may be on their way to the guest that it has not read. Its terminal holds 4 KiB; when that is nearly full
/// the driver turns its interrupt off and never on again (line_throttle, line_unthrottle).
pub(crate) const WINDOW: usize = 2048;

/// No message is longer: one that says so was never sent.
const LONGEST: usize = 4 << 20;

impl Frame {
    pub(crate) fn new(kind: Kind, process: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            process,
            payload: payload.into(),
        }
    }

    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.encode()?)
    }

    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= LONGEST)
            .ok_or_else(|| io::Error::other("arguments and environment are too long"))?;
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.push(self.kind.byte());
        bytes.extend(self.process.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(&self.payload);
        Ok(bytes)
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let [kind, a, b, c, d, length @ ..] = head;
        let strange = || io::Error::other(format!("{head:?} begins no message"));
        let kind = Kind::of(kind).ok_or_else(strange)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(strange());
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Self::new(kind, u32::from_le_bytes([a, b, c, d]), payload))
    }
}

/// A process that the guest is to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// The terminal to give it, as rows and columns; none: pipes.
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) folder: OsString,
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Start {
    /// Strings that each end with a zero byte, which none of them can contain.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (rows, columns) = self.terminal.unwrap_or_default();
        let mut bytes = Vec::new();
        let mut put = |part: &OsStr| {
            bytes.extend(part.as_bytes());
            bytes.push(0);
        };
        put(OsStr::new(&format!("{rows} {columns} {}", self.words.len())));
        put(&self.folder);
        self.words.iter().for_each(|word| put(word));
        for (name, value) in &self.environment {
            put(name);
            put(value);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let mut next = || Some(OsString::from_vec(parts.next()?.to_vec()));
        let head = next()?.into_string().ok()?;
        let mut numbers = head.split(' ');
        let (rows, columns) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let count: usize = numbers.next()?.parse().ok()?;
        let folder = next()?;
        let words = (0..count).map_while(|_| next()).collect::<Vec<_>>();
        let mut environment = Vec::new();
        while let Some(name) = next() {
            environment.push((name, next()?));
        }
        (words.len() == count && count > 0).then_some(Self {
            terminal: (rows > 0).then_some((rows, columns)),
            folder,
            words,
            environment,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let start = Start {
            terminal: Some((24, 80)),
            folder: "/a folder".into(),
            words: ["program", "", "--argument=ü", "two\nlines"]
                .map(Into::into)
                .into(),
            environment: vec![("A".into(), "b=c".into()), ("EMPTY".into(), "".into())],
        };
        assert_eq!(Start::decode(&start.encode()), Some(start.clone()));
        let frame = Frame::new(Kind::Start, 7, start.encode());
        let mut bytes = Vec::new();
        frame.write(&mut bytes).expect("a vector takes all");
        let read = Frame::read(&mut bytes.as_slice());
        assert_eq!(read.expect("a whole frame"), frame);
        for end in 0..bytes.len() {
            assert!(Frame::read(&mut &bytes[..end]).is_err(), "{end} bytes");
            assert!(Start::decode(&start.encode()[..end.min(20)]).is_none());
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        assert!(Frame::read(&mut [b'?'; 9].as_slice()).is_err());
        assert!(Frame::read(&mut [b'o'; 64].as_slice()).is_err(), "1.8 GB");
        for bytes in [
            &b""[..],
            b"\0",
            b"0 0 1\0\0",
            b"0 0 99999999999\0/\0x\0",
            b"0 0 1\0/\0x\0a\0",
        ] {
            assert_eq!(Start::decode(bytes), None, "{bytes:?}");
        }
    }
}
