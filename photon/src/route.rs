//! The key that requests are routed by where several engines share the work.
use sha2::{Digest as _, Sha256};

/// What requests that should meet in one engine's cache have in common: the first 32 hexadecimal digits of
/// the SHA-256 of what a request begins with.
///
/// That is the bytes of its first picture's file, before base64; the address, if the picture is sent as
/// one; without pictures, what the user says first, in UTF-8 and without spaces around it. The first picture and not all of them: prompts
/// that begin alike share what is computed up to where they part, and a conversation stays where it is when
/// a picture is added. A server says the same at `POST /v1/route_key`, and whoever sends requests can
/// compute it without asking:
///
/// ```
/// # let picture = b"the bytes of a JPEG";
/// // In Python: hashlib.sha256(picture).hexdigest()[:32]
/// assert_eq!(photon::route_key(picture), "70a4dc01e29bcf3d6b692b56d1b4f643");
/// ```
pub fn route_key(begins_with: &[u8]) -> String {
    Sha256::digest(begins_with)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
