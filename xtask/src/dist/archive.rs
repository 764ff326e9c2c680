//! Archives that are the same bytes whenever and wherever the same files are packed.
//!
//! Files are sorted, belong to nobody, have one of two modes, and were all changed when the commit was made. Nothing is
//! said of the machine: not its clock, its user, nor its kind.
use std::io::{Cursor, Read, Write};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder, read::GzDecoder};

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the archive's folder on, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_program: bool,
}

impl Entry {
    pub(crate) fn file(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), bytes: bytes.into(), is_program: false }
    }

    fn mode(&self) -> u32 {
        if self.is_program { 0o755 } else { 0o644 }
    }
}

/// Packs files into a folder of an archive, whose kind its extension says.
pub(crate) fn pack(
    extension: &str,
    folder: &str,
    mut files: Vec<Entry>,
    seconds: u64,
) -> Result<Vec<u8>> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    match extension {
        "tar.gz" => tar_gz(folder, &files, seconds),
        "zip" => zip(folder, &files, seconds),
        other => bail!("{other} is no kind of archive"),
    }
}

/// The files of an archive, with its folder in their paths.
pub(crate) fn unpack(extension: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    match extension {
        "tar.gz" => {
            let mut archive = tar::Archive::new(GzDecoder::new(bytes));
            let entry = |entry: std::io::Result<tar::Entry<'_, _>>| {
                let mut entry = entry?;
                let path = entry.path()?.to_str().context("a path in the archive")?.to_owned();
                let is_program = entry.header().mode()? & 0o111 != 0;
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Ok::<_, anyhow::Error>(Entry { path, bytes, is_program })
            };
            archive.entries()?.map(entry).collect()
        }
        "zip" => {
            let mut archive = zip::ZipArchive::new(Cursor::new(bytes))?;
            let count = archive.len();
            let entry = |i| {
                let mut entry = archive.by_index(i)?;
                let path = entry.name()?.into_owned();
                let is_program = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Ok::<_, anyhow::Error>(Entry { path, bytes, is_program })
            };
            (0..count).map(entry).collect()
        }
        other => bail!("{other} is no kind of archive"),
    }
}

fn tar_gz(folder: &str, files: &[Entry], seconds: u64) -> Result<Vec<u8>> {
    // No system: 255 is "unknown".
    let gz = GzBuilder::new().mtime(0).operating_system(255);
    let mut archive = tar::Builder::new(gz.write(Vec::new(), Compression::best()));
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.bytes.len() as u64);
        header.set_mode(file.mode());
        header.set_mtime(seconds);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        archive.append_data(&mut header, format!("{folder}/{}", file.path), &file.bytes[..])?;
    }
    Ok(archive.into_inner()?.finish()?)
}

fn zip(folder: &str, files: &[Entry], seconds: u64) -> Result<Vec<u8>> {
    let [year, month, day, hour, minute, second] = utc(seconds);
    let byte = |n: u64| u8::try_from(n).expect("a part of a date");
    let time = zip::DateTime::from_date_and_time(
        u16::try_from(year).context("a year")?,
        byte(month),
        byte(day),
        byte(hour),
        byte(minute),
        byte(second),
    )?;
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .compression_level(Some(9))
            .last_modified_time(time)
            .unix_permissions(file.mode());
        archive.start_file(format!("{folder}/{}", file.path), options)?;
        archive.write_all(&file.bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// Year, month, day, hour, minute and second of a number of seconds since 1970, in UTC.
pub(crate) fn utc(seconds: u64) -> [u64; 6] {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    [year, month, days + 1, rest / 3600, rest / 60 % 60, rest % 60]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<Entry> {
        let program = Entry { is_program: true, ..Entry::file("photon", b"\x7fELF".repeat(999)) };
        vec![Entry::file("man/photon.1", "page"), program, Entry::file("LICENSE", "Apache")]
    }

    #[test]
    fn what_is_packed_comes_out_and_its_order_does_not_matter() {
        for extension in ["tar.gz", "zip"] {
            let packed = pack(extension, "photon-1", files(), 1_700_000_000).unwrap();
            let backwards = files().into_iter().rev().collect();
            assert!(packed == pack(extension, "photon-1", backwards, 1_700_000_000).unwrap());
            assert!(packed != pack(extension, "photon-1", files(), 1_700_000_002).unwrap());
            let mut expected = files();
            expected.sort_by(|a, b| a.path.cmp(&b.path));
            for file in &mut expected {
                file.path = format!("photon-1/{}", file.path);
            }
            assert_eq!(unpack(extension, &packed).unwrap(), expected, "{extension}");
        }
    }

    #[test]
    fn a_gz_file_does_not_say_when_and_where_it_was_made() {
        let packed = pack("tar.gz", "photon-1", files(), 1_700_000_000).unwrap();
        assert_eq!(packed[..4], [0x1f, 0x8b, 8, 0], "a name or a comment");
        assert_eq!(packed[4..8], [0; 4], "a time");
        assert_eq!(packed[9], 255, "a system");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), [1970, 1, 1, 0, 0, 0]);
        assert_eq!(utc(951_782_399), [2000, 2, 28, 23, 59, 59]);
        assert_eq!(utc(951_782_400), [2000, 2, 29, 0, 0, 0]);
        assert_eq!(utc(1_735_689_599), [2024, 12, 31, 23, 59, 59]);
        assert_eq!(utc(4_107_542_400), [2100, 3, 1, 0, 0, 0]);
    }
}
