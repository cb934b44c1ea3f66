//! Who may do what.
//!
//! | record | meaning |
//! |---|---|
//! | `certificate/FINGERPRINT` | whom a certificate stands for; no record, no access |
//! | `token/SHA256` | an operator's token, by its digest |
//! | `join/SHA256` | a secret that lets one host join, until a time |

use fermata_model::HostName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What an operator may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    View,
    /// Run rollouts.
    Operate,
    /// Override invariants, let hosts and operators in and out.
    Admin,
}

/// Who is speaking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// A person or a program.
    Operator {
        /// Its name, for the audit log.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// The agent of a host.
    Agent(HostName),
}

/// A join token's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Not after this time.
    pub until: Timestamp,
    /// Only this host, if named.
    pub host: Option<HostName>,
}

/// A join token as text: `SECRET.FINGERPRINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Shown once.
    pub secret: String,
    /// By which the controller is known.
    pub ca: String,
}

/// A text that is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join token; copy the whole line that `fermata controller token` printed")]
pub struct NotAToken;

impl std::str::FromStr for JoinToken {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (secret, ca) = text.trim().split_once('.').ok_or(NotAToken)?;
        let hexadecimal = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hexadecimal(secret) || !hexadecimal(ca) {
            return Err(NotAToken);
        }
        Ok(Self { secret: secret.to_owned(), ca: ca.to_owned() })
    }
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.secret, self.ca)
    }
}

/// A secret of 256 bits, in hexadecimal, from the system's randomness.
#[must_use]
pub fn secret() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// The key of a certificate's record.
#[must_use]
pub fn certificate_key(fingerprint: &str) -> String {
    format!("certificate/{fingerprint}")
}

/// The key of a token's record.
#[must_use]
pub fn token_key(token: &str) -> String {
    format!("token/{}", crate::pki::sha256(token.as_bytes()))
}

/// The key of a join secret's record.
#[must_use]
pub fn join_key(secret: &str) -> String {
    format!("join/{}", crate::pki::sha256(secret.as_bytes()))
}
