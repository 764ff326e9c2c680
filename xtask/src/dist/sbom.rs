//! What a program is made of, for programs: CycloneDX 1.5, as JSON. The same program has the same bytes here.
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{archive::utc, crates::Crate, hex, targets::Target};

/// The description of a program: its crates and how they use each other. `program` is the crate that everything else is
/// there for; `seconds` when its commit was made.
pub(crate) fn describe(
    target: &Target,
    program: &str,
    crates: &[Crate],
    compiler: &str,
    seconds: u64,
) -> Result<Vec<u8>> {
    let main = crates.iter().find(|a| a.name == program).context("the program's crate")?;
    let components: Vec<Value> =
        crates.iter().filter(|a| a.name != program).map(component).collect();
    let dependencies: Vec<Value> = crates
        .iter()
        .map(|a| {
            let uses: Vec<String> =
                a.uses.iter().map(|(name, version)| id(name, version)).collect();
            json!({ "ref": id(&a.name, &a.version), "dependsOn": uses })
        })
        .collect();
    let [year, month, day, hour, minute, second] = utc(seconds);
    let time = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    let mut description = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": { "components": [
                { "type": "application", "name": "cargo xtask dist", "version": main.version },
                { "type": "application", "name": "rustc", "version": compiler },
            ]},
            "component": {
                "type": "application",
                "bom-ref": id(&main.name, &main.version),
                "name": "photon",
                "version": main.version,
                "licenses": [{ "expression": main.license }],
                "properties": [
                    { "name": "photon:target", "value": target.triple },
                    { "name": "photon:features", "value": target.features.join(",") },
                ],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    description["serialNumber"] = json!(serial(description.to_string().as_bytes()));
    let mut bytes = serde_json::to_vec_pretty(&description)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn id(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

fn component(a: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": id(&a.name, &a.version),
        "name": a.name,
        "version": a.version,
        "description": a.description,
        "licenses": [{ "expression": a.license }],
        "purl": id(&a.name, &a.version),
    });
    if let Some(checksum) = &a.checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if !a.repository.is_empty() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": a.repository }]);
    }
    component
}

/// A number of its own for every description, made of what it says.
fn serial(bytes: &[u8]) -> String {
    let mut digest: [u8; 32] = Sha256::digest(bytes).into();
    // As UUIDs of version 8, whose bits may mean anything.
    digest[6] = digest[6] & 0x0f | 0x80;
    digest[8] = digest[8] & 0x3f | 0x80;
    let hex = hex(&digest[..16]);
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("urn:uuid:{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::targets::TARGETS;

    #[test]
    fn every_crate_is_described_and_what_it_uses_is_too() {
        let serde = Crate {
            name: "serde".into(),
            version: "1.0.0".into(),
            license: "MIT OR Apache-2.0".into(),
            checksum: Some("ab".repeat(32)),
            ..Crate::default()
        };
        let ours = Crate {
            name: "photon-cli".into(),
            version: "0.1.0".into(),
            license: "Apache-2.0".into(),
            uses: [("serde".into(), "1.0.0".into())].into(),
            ..Crate::default()
        };
        let make = |seconds| {
            describe(&TARGETS[0], "photon-cli", &[ours.clone(), serde.clone()], "1.95.0", seconds)
                .unwrap()
        };
        assert!(make(0) == make(0));
        let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let (first, later) = (read(make(1_700_000_000)), read(make(1_700_000_001)));
        assert_eq!(first["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(first["components"].as_array().unwrap().len(), 1);
        assert_eq!(first["components"][0]["hashes"][0]["content"], "ab".repeat(32));
        assert_eq!(first["dependencies"][0]["dependsOn"], json!(["pkg:cargo/serde@1.0.0"]));
        assert_ne!(first["serialNumber"], later["serialNumber"]);
        let number = first["serialNumber"].as_str().unwrap().strip_prefix("urn:uuid:").unwrap();
        let parts: Vec<usize> = number.split('-').map(str::len).collect();
        assert_eq!((parts, &number[14..15]), (vec![8, 4, 4, 4, 12], "8"));
    }
}
