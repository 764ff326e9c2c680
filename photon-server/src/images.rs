//! Pictures as clients send them: base64, data URIs, and addresses where that is allowed.
use photon::ImageSource;

use crate::{Config, error::Problem, fetch, wire};

/// A picture from what a client sent. `field` is only for the message.
pub(crate) async fn source(
    data: &str,
    field: &str,
    config: &Config,
) -> Result<ImageSource, Problem> {
    let data = data.trim();
    let bytes = match data.get(..8).map(str::to_ascii_lowercase).as_deref() {
        Some("https://") => fetch::fetch(data, config).await,
        Some(start) if start.starts_with("http://") => fetch::fetch(data, config).await,
        _ => decode(data, config),
    };
    Ok(ImageSource::Encoded(bytes.map_err(|problem| problem.at(field))?))
}

/// A picture that came as a file.
pub(crate) fn file(bytes: &[u8], config: &Config) -> Result<ImageSource, Problem> {
    check_len(bytes.len(), config)?;
    Ok(ImageSource::Encoded(bytes.to_vec()))
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
