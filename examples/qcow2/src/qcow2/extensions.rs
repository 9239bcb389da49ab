//! Header extensions: a list of (kind, length, bytes) after the fixed fields.

use std::io;

use super::header::be32;
use crate::error::{damaged, unsupported};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const ENCRYPTION: u32 = 0x0537_be77;
const BITMAPS: u32 = 0x2385_2875;

/// Length of the bitmaps extension.
const BITMAPS_LEN: usize = 24;

/// Length of an entry of the feature name table: kind, bit, name.
const NAME_ENTRY: usize = 48;

/// The extensions that this program uses. Others can be ignored: features that must not be ignored
/// have a feature bit.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) backing_format: Option<String>,
    pub(crate) features: Vec<FeatureName>,
}

/// The name of an incompatible feature bit.
#[derive(Debug)]
pub(crate) struct FeatureName {
    bit: u8,
    name: String,
}

impl Extensions {
    pub(crate) fn parse(mut rest: &[u8]) -> io::Result<Extensions> {
        let mut found = Extensions::default();
        while rest.len() >= 8 {
            let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
            // The length of the end marker must fit, too.
            let bytes = rest[8..].get(..len).ok_or_else(|| {
                damaged(format!("header extension {kind:#x} of {len} bytes reaches beyond the header"))
            })?;
            if kind == END {
                break;
            }
            match kind {
                BACKING_FORMAT => {
                    let name = std::str::from_utf8(bytes).ok().filter(|name| name.len() < 16);
                    let name = name.ok_or_else(|| {
                        damaged("invalid name of its backing file's format: must be UTF-8 of at most 15 bytes")
                    })?;
                    found.backing_format = Some(name.to_owned());
                }
                FEATURE_NAMES => found.features = names(bytes),
                ENCRYPTION => return Err(unsupported("the image is encrypted: convert it with qemu-img first")),
                BITMAPS if len != BITMAPS_LEN => {
                    return Err(damaged(format!("its bitmaps extension has {len} bytes; must be {BITMAPS_LEN}")));
                }
                _ => {}
            }
            // Extensions are aligned to 8 bytes.
            rest = rest.get(8 + len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(found)
    }
}

fn names(table: &[u8]) -> Vec<FeatureName> {
    table
        .chunks_exact(NAME_ENTRY)
        .filter(|entry| entry[0] == 0) // incompatible features
        .map(|entry| {
            let name = entry[2..].split(|&byte| byte == 0).next().unwrap_or_default();
            FeatureName { bit: entry[1], name: String::from_utf8_lossy(name).into_owned() }
        })
        .collect()
}

/// Lists the names of the set bits, as far as the image has them.
pub(crate) fn name_features(names: &[FeatureName], bits: u64) -> String {
    let of = |bit: u32| match names.iter().find(|name| u32::from(name.bit) == bit) {
        Some(name) => format!("\"{}\" (bit {bit})", name.name.escape_debug()),
        None => format!("bit {bit}"),
    };
    (0..64).filter(|bit| bits >> bit & 1 == 1).map(of).collect::<Vec<_>>().join(", ")
}

/// Encodes the extension with the format of the backing file.
pub(crate) fn backing_format(name: &str) -> Vec<u8> {
    let mut bytes = BACKING_FORMAT.to_be_bytes().to_vec();
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
