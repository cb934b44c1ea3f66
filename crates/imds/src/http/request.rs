//! A whole request, with the few header fields that mean something here.

/// The verbs of HTTP, as far as they are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Read.
    Get,
    /// Read, without the body.
    Head,
    /// Approve or defer.
    Post,
    /// Any other; answered with 405.
    Other,
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    pub(crate) method: Option<Method>,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) host: Option<String>,
    pub(crate) metadata: Option<String>,
    pub(crate) forwarded: bool,
    pub(crate) if_none_match: Option<String>,
    pub(crate) user_agent: String,
    pub(crate) keep_alive: bool,
    pub(crate) http10: bool,
    pub(crate) body: Vec<u8>,
}

/// A query that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryError {
    /// A key stands twice.
    Duplicate,
    /// A percent sign without two hexadecimal digits, or not UTF-8.
    Encoding,
}

impl Request {
    /// The verb.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method.unwrap_or(Method::Other)
    }

    /// The path, decoded, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query's keys (in lower case) and values.
    ///
    /// # Errors
    /// A key that stands twice, in whatever case, or a broken percent code.
    pub fn query(&self) -> Result<Vec<(String, String)>, QueryError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in self.query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let decode = |text: &str| percent_decode(text, true).ok_or(QueryError::Encoding);
            let key = decode(key)?.to_ascii_lowercase();
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(QueryError::Duplicate);
            }
            pairs.push((key, decode(value)?));
        }
        Ok(pairs)
    }

    /// Whether the `Metadata` header says true, in whatever case.
    #[must_use]
    pub fn has_metadata_header(&self) -> bool {
        self.metadata.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The client's name for itself.
    #[must_use]
    pub fn user_agent(&self) -> &str {
        &self.user_agent
    }

    /// Whether the connection may be used again after the answer.
    #[must_use]
    pub const fn keep_alive(&self) -> bool {
        self.keep_alive
    }
}

/// Takes percent codes off; `None` when one is broken or the result is not UTF-8.
pub(crate) fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    if !text.bytes().any(|b| b == b'%' || (plus_is_space && b == b'+')) {
        return Some(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                digit(bytes.next()?)? * 16 + digit(bytes.next()?)?
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Vec<(String, String)>, QueryError> {
        Request { query: text.to_owned(), ..Request::default() }.query()
    }

    #[test]
    fn rule_07_query_keys_ignore_case_and_stand_once() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(query("Api-Version=2020-07-01&x").unwrap(), [pair("api-version", "2020-07-01"), pair("x", "")]);
        assert_eq!(query("a=1&A=1"), Err(QueryError::Duplicate));
        assert_eq!(query("x=1&x=1"), Err(QueryError::Duplicate));
        assert_eq!(query("a=%2"), Err(QueryError::Encoding));
        assert_eq!(query("a%2Db=%7B+%7D").unwrap(), [pair("a-b", "{ }")]);
        assert_eq!(query("&&").unwrap(), []);
    }
}
