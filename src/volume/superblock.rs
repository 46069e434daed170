//! The superblock: what a volume is.
//!
//! Owns the file `superblock`: TOML, written once when the volume is made, checksummed, described
//! in docs/format.md. A reader refuses a newer format and features that it does not know.

use serde::{Deserialize, Serialize};

use super::{CreateOptions, Error};
use crate::chunk::Profile;
use crate::hash::HashKind;
use crate::store::Compression;
use crate::sys::{Access, Disk, Rng};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

const PATH: &str = "superblock";
const PATH_NEW: &str = "superblock.new";
/// Longer files are no superblock.
const BYTES_MAX: u64 = 64 << 10;
const BRANCHES_MIN: u32 = 2;
/// Copies of each tree chunk at most.
const TREE_COPIES_MAX: u32 = 2;
const BRANCHES_MAX: u32 = 2048;

/// What a volume is. Fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Names the volume; every pack carries it.
    pub uuid: [u8; 16],
    /// Shape and hash of the pyramids.
    pub profile: Profile,
    /// Compression of data frames.
    pub compression: Compression,
    /// Copies of each tree chunk: 1 or 2.
    pub tree_copies: u32,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: u32,
    uuid: String,
    branches: u32,
    hash: HashKind,
    compression: String,
    tree_copies: u32,
    /// Features without which the volume cannot be read.
    features: Vec<String>,
    /// CRC-32C of all lines in front of this one.
    checksum: u32,
}

impl Superblock {
    /// Makes the superblock of a new volume.
    pub(super) fn new(rng: &dyn Rng, options: &CreateOptions) -> Superblock {
        let mut uuid = [0; 16];
        rng.fill(&mut uuid);
        // Version 4, variant 1 (RFC 9562).
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Superblock {
            uuid,
            profile: options.profile,
            compression: options.compression,
            tree_copies: options.tree_copies,
        }
    }

    /// The volume's id in the usual notation.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    /// Whether `disk` has a superblock.
    pub(super) fn exists(disk: &dyn Disk) -> Result<bool, Error> {
        match disk.open(PATH, Access::Read) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "open the superblock", source }),
        }
    }

    /// Reads and checks the superblock.
    pub(super) fn read(disk: &dyn Disk) -> Result<Superblock, Error> {
        let file = match disk.open(PATH, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoVolume);
            }
            Err(source) => return Err(Error::Io { action: "open the superblock", source }),
        };
        let io = |source| Error::Io { action: "read the superblock", source };
        let len = file.len().map_err(io)?;
        if BYTES_MAX < len {
            return Err(Error::BadSuperblock { why: format!("it is {len} bytes long") });
        }
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, 0).map_err(io)?;
        bytes.truncate(read);
        Superblock::parse(&bytes)
    }

    /// Whether an unfinished [`Superblock::begin`] left its mark.
    pub(super) fn is_begun(disk: &dyn Disk) -> Result<bool, Error> {
        match disk.open(PATH_NEW, Access::Read) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "open the superblock", source }),
        }
    }

    /// Writes the superblock under another name, durably: whatever stands beside that is no volume
    /// yet, and may be removed.
    pub(super) fn begin(&self, disk: &dyn Disk) -> Result<(), Error> {
        let io = |source| Error::Io { action: "write the superblock", source };
        let file = match disk.open(PATH_NEW, Access::CreateNew) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                disk.open(PATH_NEW, Access::Write)
            }
            opened => opened,
        };
        let file = file.map_err(io)?;
        file.set_len(0).map_err(io)?;
        file.write_all_at(self.format().as_bytes(), 0).map_err(io)?;
        file.sync().map_err(io)?;
        disk.sync_dir("").map_err(io)
    }

    /// Gives the superblock its name: from then on there is a volume.
    pub(super) fn finish(disk: &dyn Disk) -> Result<(), Error> {
        let io = |source| Error::Io { action: "name the superblock", source };
        disk.rename(PATH_NEW, PATH).map_err(io)?;
        disk.sync_dir("").map_err(io)
    }

    /// The file's text.
    pub(super) fn format(&self) -> String {
        let text = Text {
            format: FORMAT_VERSION,
            uuid: self.uuid_text(),
            branches: self.profile.branches,
            hash: self.profile.hash,
            compression: compression_text(self.compression),
            tree_copies: self.tree_copies,
            features: Vec::new(),
            checksum: 0,
        };
        let body = format!(
            "# pyramidfs volume. Never change this file: it says how all others are read.\n\
             format = {}\nuuid = \"{}\"\nbranches = {}\nhash = \"{}\"\ncompression = \"{}\"\n\
             tree_copies = {}\nfeatures = []\n",
            text.format,
            text.uuid,
            text.branches,
            hash_text(text.hash),
            text.compression,
            text.tree_copies,
        );
        let checksum = crc32c::crc32c(body.as_bytes());
        format!("{body}checksum = {checksum}\n")
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Superblock, Error> {
        let bad = |why: String| Error::BadSuperblock { why };
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text".to_owned()))?;
        // The version comes first: a newer format may have any other lines.
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| bad(error.message().to_owned()))?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(found) if i64::from(FORMAT_VERSION) < found => {
                return Err(Error::NewerFormat {
                    found: u32::try_from(found).unwrap_or(u32::MAX),
                    supported: FORMAT_VERSION,
                });
            }
            _ => {}
        }
        let parsed: Text = toml::from_str(text).map_err(|error| bad(error.message().to_owned()))?;
        let body = text.rfind("checksum = ").and_then(|end| text.get(..end)).unwrap_or("");
        if crc32c::crc32c(body.as_bytes()) != parsed.checksum
            || text.get(body.len()..) != Some(&format!("checksum = {}\n", parsed.checksum))
        {
            return Err(bad("its checksum does not fit".to_owned()));
        }
        if parsed.format != FORMAT_VERSION {
            return Err(bad(format!("format {} never existed", parsed.format)));
        }
        if let Some(name) = parsed.features.into_iter().next() {
            return Err(Error::UnknownFeature { name });
        }
        if parsed.branches < BRANCHES_MIN || BRANCHES_MAX < parsed.branches {
            return Err(bad(format!("{} branches are out of range", parsed.branches)));
        }
        if !(1..=TREE_COPIES_MAX).contains(&parsed.tree_copies) {
            return Err(bad(format!("{} copies of trees are out of range", parsed.tree_copies)));
        }
        Ok(Superblock {
            uuid: uuid_bytes(&parsed.uuid).ok_or_else(|| bad("its uuid is none".to_owned()))?,
            profile: Profile { branches: parsed.branches, hash: parsed.hash },
            compression: compression_value(&parsed.compression)
                .ok_or_else(|| bad(format!("compression {:?} is unknown", parsed.compression)))?,
            tree_copies: parsed.tree_copies,
        })
    }
}

/// The name of a hash in the superblock and on the command line.
pub fn hash_text(hash: HashKind) -> &'static str {
    match hash {
        HashKind::Sha3_256 => "sha3-256",
        HashKind::Keccak256 => "keccak-256",
        HashKind::Blake3 => "blake3",
    }
}

/// The name of a compression in the superblock and on the command line.
pub fn compression_text(compression: Compression) -> String {
    match compression {
        Compression::None => "none".to_owned(),
        Compression::Lz4 => "lz4".to_owned(),
        Compression::Zstd(level) => format!("zstd:{level}"),
    }
}

/// Reads what [`compression_text`] writes, and `zstd` without a level as level 3.
pub fn compression_value(text: &str) -> Option<Compression> {
    match text {
        "none" => Some(Compression::None),
        "lz4" => Some(Compression::Lz4),
        "zstd" => Some(Compression::Zstd(3)),
        _ => {
            let level: i32 = text.strip_prefix("zstd:")?.parse().ok()?;
            (1..=19).contains(&level).then_some(Compression::Zstd(level))
        }
    }
}

fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let hex: String = text.chars().filter(|&letter| letter != '-').collect();
    let mut uuid = [0; 16];
    if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in uuid.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(uuid)
}
