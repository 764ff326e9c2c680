//! Pictures as clients send them: base64, data URIs, and addresses where that is allowed.
use photon::ImageSource;

use crate::{Config, error::Problem, fetch, wire};

/// A picture as a client sent it.
#[derive(Debug)]
pub(crate) enum Sent {
    /// The file.
    File(Vec<u8>),
    /// Where it is to be fetched from, and the field that says so, for messages.
    Address(String, &'static str),
}

impl Sent {
    /// A picture in a text: base64, a data URI or an address. `field` is only for the message.
    pub(crate) fn text(data: &str, field: &'static str, config: &Config) -> Result<Self, Problem> {
        let data = data.trim();
        let start = data.get(..8).unwrap_or_default().to_ascii_lowercase();
        if start == "https://" || start.starts_with("http://") {
            return Ok(Sent::Address(data.to_owned(), field));
        }
        decode(data, config).map(Sent::File).map_err(|problem| problem.at(field))
    }

    /// A picture that came as a file.
    pub(crate) fn file(bytes: &[u8], config: &Config) -> Result<Self, Problem> {
        check_len(bytes.len(), config)?;
        Ok(Sent::File(bytes.to_vec()))
    }

    /// What a request that has this picture first begins with, see [`photon::route_key`].
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Sent::File(bytes) => bytes,
            Sent::Address(address, _) => address.as_bytes(),
        }
    }
}

/// The files of pictures, fetched where they are not here.
pub(crate) async fn files(sent: Vec<Sent>, config: &Config) -> Result<Vec<ImageSource>, Problem> {
    let mut files = Vec::with_capacity(sent.len());
    for sent in sent {
        let bytes = match sent {
            Sent::File(bytes) => bytes,
            Sent::Address(address, field) => {
                fetch::fetch(&address, config).await.map_err(|problem| problem.at(field))?
            }
        };
        files.push(ImageSource::Encoded(bytes));
    }
    Ok(files)
}

/// Bare base64 or a data URI, refused before it is decoded if it is too large.
fn decode(data: &str, config: &Config) -> Result<Vec<u8>, Problem> {
    check_len(data.len() / 4 * 3, config)?;
    Ok(wire::decode(data)?)
}

fn check_len(bytes: usize, config: &Config) -> Result<(), Problem> {
    if bytes <= config.max_image_bytes {
        return Ok(());
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (has, max) = (mib(bytes), mib(config.max_image_bytes));
    Err(Problem::too_large(format!(
        "the picture has {has:.1} MiB, the most is {max:.1} MiB (--max-image)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(data: &str) -> Result<Vec<u8>, String> {
        let config = Config { max_image_bytes: 40, ..Config::default() };
        decode(data, &config).map_err(|problem| problem.message)
    }

    #[test]
    fn base64_comes_bare_or_in_a_data_uri_padded_or_not() {
        for data in ["YWJj ZA==", "YWJjZA", "data:image/png;base64,YWJjZA==", "YWJj\nZA=="] {
            assert_eq!(decoded(data).unwrap(), b"abcd", "{data}");
        }
        assert!(decoded("data:image/png,abc").unwrap_err().contains("base64,"));
        assert!(decoded("%%%").unwrap_err().starts_with("the picture is not base64"));
        assert!(decoded(&"YWJj".repeat(20)).unwrap_err().contains("--max-image"));
    }
}
