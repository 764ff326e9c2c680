//! Keys.
use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The keys of which a request must show one.
#[derive(Clone)]
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Keys(keys.iter().map(|key| Sha256::digest(key).into()).collect())
    }

    /// Whether requests need a key.
    pub(crate) fn required(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a request may pass. How long this takes depends neither on how much of a key is right
    /// nor on which key it is: digests are compared, all of them, to the end.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        if !self.required() {
            return true;
        }
        let Some(given) = given(headers) else { return false };
        let digest: [u8; 32] = Sha256::digest(given).into();
        let known = self.0.iter().map(|key| key.ct_eq(&digest));
        known.fold(Choice::from(0), |any, one| any | one).into()
    }
}

/// The key a request shows, in either of its places. An empty one is none: Moondream's JavaScript client
/// sends an empty header without a key.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let native = headers.get("x-moondream-auth").map(HeaderValue::as_bytes);
    let bearer = headers.get("authorization").and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    [native, bearer].into_iter().flatten().find(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(keys: &[&str], header: Option<(&'static str, &str)>) -> bool {
        let keys = Keys::new(&keys.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        keys.allow(&headers)
    }

    #[test]
    fn any_of_the_keys_in_either_header_passes() {
        assert!(allows(&[], None));
        assert!(!allows(&["a"], None));
        assert!(allows(&["a", "b"], Some(("x-moondream-auth", "b"))));
        assert!(allows(&["a", "b"], Some(("authorization", "Bearer a"))));
        assert!(allows(&["a"], Some(("authorization", "bearer a"))));
        assert!(!allows(&["a"], Some(("authorization", "Basic a"))));
        assert!(!allows(&["a"], Some(("x-moondream-auth", ""))));
        assert!(!allows(&["ab"], Some(("x-moondream-auth", "a"))));
    }
}
