//! TSIG (RFC 8945): a DNS message signed with a key that both sides share.
//!
//! hickory-proto has it too, but only together with its whole DNSSEC, which asks for other features of the TLS
//! library beneath; the few lines that signing and checking one message takes are here instead, on the HMAC of that
//! same library. Truncated MACs and messages of several parts are not supported: nobody sends them after an update.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use hickory_proto::{rr::Name, serialize::binary::BinEncodable};
use secrecy::{ExposeSecret, SecretString};

/// How far the two clocks may be apart, in seconds: what RFC 8945 recommends.
const FUDGE: u16 = 300;
const TSIG: u16 = 250;
const ANY: u16 = 255;
const HEADER: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"\x0bhmac-sha256\0",
            Self::Sha384 => b"\x0bhmac-sha384\0",
            Self::Sha512 => b"\x0bhmac-sha512\0",
        }
    }
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

/// A shared key, under the name that both sides know it by.
pub struct Key {
    /// In wire form, lower case.
    name: Vec<u8>,
    algorithm: Algorithm,
    secret: hmac::Key,
}

/// Why a key or a message is no good; never with what is secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsigError {
    #[error("the key's name is no domain name: {0}")]
    Name(String),
    #[error("the key is not in base64, as `tsig-keygen` and `keymgr -t` write it")]
    Base64,
    #[error("the answer is cut short or malformed")]
    Malformed,
    /// Whoever sent it need not know the key.
    #[error("the answer is not signed")]
    Unsigned,
    #[error("the answer's signature is wrong: it was changed on the way, or made with another key")]
    Forged,
    #[error("the answer was signed at another time: the clocks are {0} s apart")]
    Time(u64),
    /// The server's own words about our signature: BADSIG, BADKEY, BADTIME.
    #[error("{}", refused(*.0))]
    Refused(u16),
}

fn refused(code: u16) -> String {
    match code {
        16 => "the server says BADSIG: it has another secret under the key's name".to_owned(),
        17 => "the server says BADKEY: it knows no key of that name and algorithm".to_owned(),
        18 => "the server says BADTIME: its clock and this machine's are more than five minutes apart".to_owned(),
        other => format!("the server refuses the signature with TSIG error {other}"),
    }
}

impl Key {
    pub fn new(name: &str, algorithm: Algorithm, secret: &SecretString) -> Result<Self, TsigError> {
        let mut parsed = Name::from_ascii(name).map_err(|e| TsigError::Name(e.to_string()))?;
        parsed.set_fqdn(true);
        let name = parsed.to_lowercase().to_bytes().map_err(|e| TsigError::Name(e.to_string()))?;
        let bytes = STANDARD.decode(secret.expose_secret().trim()).map_err(|_| TsigError::Base64)?;
        Ok(Self { name, algorithm, secret: hmac::Key::new(algorithm.hmac(), &bytes) })
    }

    /// Signs a request; the MAC is needed to check the answer.
    pub fn sign(&self, message: &mut Vec<u8>, seconds: u64) -> Result<Vec<u8>, TsigError> {
        let id: [u8; 2] = message.get(..2).and_then(|id| id.try_into().ok()).ok_or(TsigError::Malformed)?;
        let mut signed = hmac::Context::with_key(&self.secret);
        signed.update(message);
        signed.update(&self.variables(seconds, FUDGE, 0, &[]));
        let mac = signed.sign().as_ref().to_vec();
        let mut data = self.algorithm.name().to_vec();
        data.extend_from_slice(&seconds.to_be_bytes()[2..]);
        data.extend_from_slice(&FUDGE.to_be_bytes());
        data.extend_from_slice(&(mac.len() as u16).to_be_bytes());
        data.extend_from_slice(&mac);
        data.extend_from_slice(&id);
        data.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&self.name);
        message.extend_from_slice(&TSIG.to_be_bytes());
        message.extend_from_slice(&ANY.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&(data.len() as u16).to_be_bytes());
        message.extend_from_slice(&data);
        add_to_count(message, 1)?;
        Ok(mac)
    }

    /// Is this the answer to the request with that MAC, by somebody who knows the key, and of now?
    pub fn check(&self, answer: &[u8], request: &[u8], seconds: u64) -> Result<(), TsigError> {
        let found = Signature::find(answer)?;
        if found.error != 0 && found.mac.is_empty() {
            // Of an answer that could not be signed at all: nobody has vouched for it, and it is a refusal in any case.
            return Err(TsigError::Refused(found.error));
        }
        if found.name.to_ascii_lowercase() != self.name || found.algorithm.to_ascii_lowercase() != self.algorithm.name() {
            return Err(TsigError::Forged);
        }
        let mut message = answer.get(..found.at).ok_or(TsigError::Malformed)?.to_vec();
        add_to_count(&mut message, -1)?;
        message.get_mut(..2).ok_or(TsigError::Malformed)?.copy_from_slice(&found.id);
        let mut text = (request.len() as u16).to_be_bytes().to_vec();
        text.extend_from_slice(request);
        text.extend_from_slice(&message);
        text.extend_from_slice(&self.variables(found.seconds, found.fudge, found.error, found.other));
        hmac::verify(&self.secret, &text, found.mac).map_err(|_| TsigError::Forged)?;
        if found.error != 0 {
            return Err(TsigError::Refused(found.error));
        }
        let apart = found.seconds.abs_diff(seconds);
        if apart > u64::from(found.fudge) { Err(TsigError::Time(apart)) } else { Ok(()) }
    }

    /// What is signed beside the message (RFC 8945 §4.3.3).
    fn variables(&self, seconds: u64, fudge: u16, error: u16, other: &[u8]) -> Vec<u8> {
        let mut bytes = self.name.clone();
        bytes.extend_from_slice(&ANY.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(self.algorithm.name());
        bytes.extend_from_slice(&seconds.to_be_bytes()[2..]);
        bytes.extend_from_slice(&fudge.to_be_bytes());
        bytes.extend_from_slice(&error.to_be_bytes());
        bytes.extend_from_slice(&(other.len() as u16).to_be_bytes());
        bytes.extend_from_slice(other);
        bytes
    }
}

/// The signature at the end of a message.
struct Signature<'a> {
    /// Where its record begins.
    at: usize,
    name: &'a [u8],
    algorithm: &'a [u8],
    seconds: u64,
    fudge: u16,
    mac: &'a [u8],
    id: [u8; 2],
    error: u16,
    other: &'a [u8],
}

impl<'a> Signature<'a> {
    /// Goes over every record: the signature is the last, and its length cannot be known from behind.
    fn find(message: &'a [u8]) -> Result<Self, TsigError> {
        let mut reader = Wire { bytes: message, at: 4 };
        let counts = [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
        for _ in 0..counts[0] {
            reader.name()?;
            reader.take(4)?;
        }
        let records = counts[1..].iter().map(|n| u32::from(*n)).sum::<u32>();
        for number in 1..=records {
            let at = reader.at;
            let name = reader.name()?;
            let kind = reader.number()?;
            reader.take(6)?;
            let length = reader.number()?;
            let data = reader.take(usize::from(length))?;
            if number == records && counts[3] > 0 && kind == TSIG {
                return Self::read(at, name, data);
            }
        }
        Err(TsigError::Unsigned)
    }

    fn read(at: usize, name: &'a [u8], data: &'a [u8]) -> Result<Self, TsigError> {
        let mut reader = Wire { bytes: data, at: 0 };
        let algorithm = reader.name()?;
        let mut seconds = [0; 8];
        seconds[2..].copy_from_slice(reader.take(6)?);
        let fudge = reader.number()?;
        let length = reader.number()?;
        let mac = reader.take(usize::from(length))?;
        let id = reader.number()?.to_be_bytes();
        let error = reader.number()?;
        let length = reader.number()?;
        let other = reader.take(usize::from(length))?;
        Ok(Self { at, name, algorithm, seconds: u64::from_be_bytes(seconds), fudge, mac, id, error, other })
    }
}

struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Wire<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TsigError> {
        let end = self.at.checked_add(length).ok_or(TsigError::Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(TsigError::Malformed)?;
        self.at = end;
        Ok(taken)
    }
    fn number(&mut self) -> Result<u16, TsigError> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| TsigError::Malformed)
    }
    /// The bytes of a name as they stand here. One that is compressed ends with a pointer; a signature's never is.
    fn name(&mut self) -> Result<&'a [u8], TsigError> {
        let begin = self.at;
        loop {
            match self.take(1)?.first().copied().unwrap_or_default() {
                0 => break,
                pointer if pointer & 0xC0 == 0xC0 => {
                    self.take(1)?;
                    break;
                }
                length if length & 0xC0 == 0 => self.take(usize::from(length)).map(|_| ())?,
                _ => return Err(TsigError::Malformed),
            }
        }
        self.bytes.get(begin..self.at).ok_or(TsigError::Malformed)
    }
}

/// The number of additional records, in the header.
fn add_to_count(message: &mut [u8], by: i16) -> Result<(), TsigError> {
    let field = message.get_mut(HEADER - 2..HEADER).ok_or(TsigError::Malformed)?;
    let count = u16::from_be_bytes([field[0], field[1]]).checked_add_signed(by).ok_or(TsigError::Malformed)?;
    field.copy_from_slice(&count.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000;

    fn key(secret: &str) -> Key {
        Key::new("Dr.Example", Algorithm::Sha256, &SecretString::from(secret)).unwrap()
    }

    /// A header with nothing after it.
    fn message() -> Vec<u8> {
        [0x12, 0x34, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec()
    }

    /// An answer as a server signs it: over the request's MAC as well.
    fn answer(key: &Key, request: &[u8], seconds: u64) -> Vec<u8> {
        let mut plain = message();
        let mut text = (request.len() as u16).to_be_bytes().to_vec();
        text.extend_from_slice(request);
        text.extend_from_slice(&plain);
        text.extend_from_slice(&key.variables(seconds, FUDGE, 0, &[]));
        let mac = hmac::sign(&key.secret, &text);
        let wrong = key.sign(&mut plain, seconds).unwrap();
        let at = plain.windows(wrong.len()).position(|w| w == wrong).unwrap();
        plain[at..at + wrong.len()].copy_from_slice(mac.as_ref());
        plain
    }

    #[test]
    fn an_answer_is_believed_from_who_knows_the_key_for_this_request_and_now() {
        let (ours, theirs) = (key("c2VjcmV0"), key("b3RoZXI="));
        let mac = ours.sign(&mut message(), NOW).unwrap();
        let good = answer(&ours, &mac, NOW + 3);
        assert_eq!(ours.check(&good, &mac, NOW), Ok(()));
        assert_eq!(ours.check(&good, &mac[1..], NOW), Err(TsigError::Forged), "of another request");
        assert_eq!(ours.check(&answer(&theirs, &mac, NOW), &mac, NOW), Err(TsigError::Forged));
        assert_eq!(ours.check(&good, &mac, NOW + 1_000), Err(TsigError::Time(997)));
        assert_eq!(ours.check(&message(), &mac, NOW), Err(TsigError::Unsigned));
    }

    #[test]
    fn a_key_that_is_no_key_is_refused_without_its_secret() {
        let error = Key::new("dr", Algorithm::Sha512, &SecretString::from("hunter2!")).err().unwrap();
        assert_eq!(error, TsigError::Base64);
        assert!(!error.to_string().contains("hunter2"));
        assert!(matches!(Key::new("a..b", Algorithm::Sha256, &SecretString::from("c2Vj")), Err(TsigError::Name(_))));
    }

    proptest! {
        #[test]
        fn any_change_of_a_byte_is_seen(at in 0usize..1_000, bit in 0u8..8) {
            let ours = key("c2VjcmV0");
            let mac = ours.sign(&mut message(), NOW).unwrap();
            let mut bytes = answer(&ours, &mac, NOW);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            // The identifier in the header is not signed: the one in the signature is. Class and TTL of its record
            // are fixed and not compared.
            let fixed = bytes.len() - 2 - (16 + 32 + 13);
            prop_assume!(at >= 2 && !(fixed - 8..fixed).contains(&at));
            // A letter of another case is the same name.
            let same = ours.check(&bytes, &mac, NOW).is_ok();
            prop_assert!(!same || bytes[at].is_ascii_alphabetic());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = key("c2VjcmV0").check(&bytes, &[0; 32], NOW);
        }
    }
}
