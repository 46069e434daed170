//! Images of the metadata: how their parts lie in aux packs, and how they are found again.
//!
//! Owns writing the parts of an image, finding whole images with nothing but the packs, and
//! removing those that a newer one has made useless. A part is a frame of kind `Image`; in the
//! place of the list stands:
//!
//! ```text
//! offset size field (little-endian)
//!      0    8 pack, offset and sequence number of the log position that the image is of (8 each)
//!     24    8 number of the image: that of the pack with its first part
//!     32    8 bytes of all commit records up to the position
//!     40    8 entries in this part and those before it
//!     48    4 number of the part, from 0
//!     52    4 flags: bit 0: it is the last part
//!     56    4 running checksum: crc32c of the payload checksums up to this part's, in order
//!     60    4 zeros
//! ```
//!
//! Invariant: an image is whole when all parts up to the last are there and their payloads sound.
//! Absent on purpose: what an image holds, and when one is made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::aux_pack::AuxWriter;
use super::frame::{self, Kind, Life, Parts, u32_at, u64_at};
use super::pack::{At, PackFile, PackHeader, PackKind};
use super::record::run_on;
use super::{Compression, Error, Inner, LogPosition, Result, Store, open};
use crate::sys::Disk;

/// Bytes in the place of a part's list.
pub const IMAGE_HEAD_BYTES: usize = 64;
/// A part is closed once it has so many bytes, before compression.
pub const IMAGE_PART_BYTES: usize = 1 << 20;

const FLAG_LAST: u32 = 1;
const COMPRESSION: Compression = Compression::Zstd(3);

/// What a part says of its image and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageHead {
    /// The image has the entries of all records up to here.
    pub position: LogPosition,
    /// The image's number.
    pub image: u64,
    /// Bytes of all commit records up to the position.
    pub record_bytes: u64,
    /// Entries in this part and those before it.
    pub entries: u64,
    /// The part's number.
    pub part: u32,
    /// Whether it is the last.
    pub last: bool,
    /// Checksum over the payload checksums so far.
    pub running_crc: u32,
}

impl ImageHead {
    /// Encodes it for the place of a frame's list.
    pub fn encode(&self) -> Vec<u8> {
        let LogPosition { pack, offset, sequence } = self.position;
        let mut bytes = Vec::with_capacity(IMAGE_HEAD_BYTES);
        for number in [pack, offset, sequence, self.image, self.record_bytes, self.entries] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.part, u32::from(self.last) * FLAG_LAST, self.running_crc, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Decodes it; `None` when the bytes are no part's head.
    pub fn decode(bytes: &[u8]) -> Option<ImageHead> {
        if bytes.len() != IMAGE_HEAD_BYTES {
            return None;
        }
        let (pack, offset) = (u64_at(bytes, 0)?, u64_at(bytes, 8)?);
        let position = LogPosition { pack, offset, sequence: u64_at(bytes, 16)? };
        let head = ImageHead {
            position,
            image: u64_at(bytes, 24)?,
            record_bytes: u64_at(bytes, 32)?,
            entries: u64_at(bytes, 40)?,
            part: u32_at(bytes, 48)?,
            last: u32_at(bytes, 52)? & FLAG_LAST != 0,
            running_crc: u32_at(bytes, 56)?,
        };
        (position.is_possible() && head.record_bytes < super::COUNT_MAX).then_some(head)
    }
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// Its number.
    pub image: u64,
    /// The packs that hold it.
    pub packs: Vec<u64>,
    /// Their bytes.
    pub bytes: u64,
}

/// An image that is being written; dropped before its end, it leaves nothing.
pub struct ImageWriter<'a> {
    inner: &'a Inner,
    head: ImageHead,
    open: Option<AuxWriter<'a>>,
    packs: Vec<u64>,
    bytes: u64,
    is_finished: bool,
}

impl ImageWriter<'_> {
    /// Writes the next part, of so many entries.
    pub fn part(&mut self, entries: u64, payload: &[u8], last: bool) -> Result<()> {
        self.inner.pipeline.check()?;
        let (codec, packed) = frame::compress(COMPRESSION, payload);
        let stored = packed.as_deref().unwrap_or(payload);
        let room = self.inner.options.pack_bytes_max;
        if let Some(open) = self.open.take_if(|open| room < open.end() + stored.len() as u64) {
            self.seal(open)?;
        }
        let mut writer = match self.open.take() {
            Some(writer) => writer,
            None => AuxWriter::begin(self.inner, 0)?,
        };
        if self.head.image == 0 {
            self.head.image = writer.number();
        }
        self.head.entries += entries;
        self.head.last = last;
        self.head.running_crc = run_on(self.head.running_crc, crc32c::crc32c(stored));
        let mut bytes = frame::encode(&Parts {
            kind: Kind::Image,
            codec,
            count: 0,
            list: &self.head.encode(),
            payload: stored,
            raw_bytes: payload.len() as u32,
        });
        writer.append(&mut bytes)?;
        self.open = Some(writer);
        self.head.part += 1;
        Ok(())
    }

    fn seal(&mut self, writer: AuxWriter<'_>) -> Result<()> {
        let (number, bytes) = writer.finish()?;
        self.packs.push(number);
        self.bytes += bytes;
        Ok(())
    }

    /// Makes the image durable. The last part must have been written.
    pub fn finish(mut self) -> Result<WrittenImage> {
        assert!(self.head.last, "an image ends with its last part");
        if let Some(writer) = self.open.take() {
            self.seal(writer)?;
        }
        self.is_finished = true;
        let (image, bytes) = (self.head.image, self.bytes);
        Ok(WrittenImage { image, packs: std::mem::take(&mut self.packs), bytes })
    }
}

impl Drop for ImageWriter<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            for pack in &self.packs {
                // What stays is removed once a later image is there.
                let _ = self.inner.remove_aux(*pack);
            }
        }
    }
}

impl Store {
    /// Begins to write an image of the metadata as it is at `position`.
    pub fn image_writer(&self, position: LogPosition, record_bytes: u64) -> ImageWriter<'_> {
        let head = ImageHead { position, record_bytes, ..ImageHead::default() };
        let (packs, bytes) = (Vec::new(), 0);
        ImageWriter { inner: &self.inner, head, open: None, packs, bytes, is_finished: false }
    }

    /// Removes all images, whole or not, that are no newer than `position`, except `image`.
    pub fn remove_other_images(&self, image: u64, position: LogPosition) -> Result<()> {
        let inner = &self.inner;
        for number in open::list(&*inner.disk)?.numbers {
            let Some(file) = inner.pack_if_there(number)? else { continue };
            let heads = heads_in(&file)?;
            let is_useless = |head: &ImageHead| {
                head.image != image && head.position.sequence <= position.sequence
            };
            if heads.first().is_some_and(|(_, head, _)| is_useless(head)) {
                inner.remove_aux(number)?;
            }
        }
        Ok(())
    }
}

/// Returns where the parts in a pack lie, what they say, and their payload checksums.
fn heads_in(file: &PackFile) -> Result<Vec<(u64, ImageHead, u32)>> {
    let action = Error::io("look for images of the metadata");
    let is_candidate = match file.header().map_err(&action)? {
        PackHeader::Good(kind) => kind == PackKind::Aux { source: 0 },
        PackHeader::Newer(_) => false,
        PackHeader::Damaged => file.is_aux().map_err(&action)?,
    };
    if !is_candidate {
        return Ok(Vec::new());
    }
    let (frames, _) = file.frames(u64::MAX).map_err(&action)?;
    let images = frames.iter().filter(|found| found.header.kind == Kind::Image);
    let heads = images.filter_map(|found| {
        let head = ImageHead::decode(found.list())?;
        Some((found.offset, head, found.header.payload_crc))
    });
    Ok(heads.collect())
}

/// An image whose parts are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// What its last part says.
    pub head: ImageHead,
    /// Pack and offset of each part.
    parts: Vec<(u64, u64)>,
}

/// Finds the images in the packs of a volume, the newest first.
pub fn find_images(disk: &Arc<dyn Disk>, volume_id: [u8; 16]) -> Result<Vec<FoundImage>> {
    let mut parts: BTreeMap<u64, Vec<(u64, u64, ImageHead, u32)>> = BTreeMap::new();
    for pack in open::list(&**disk)?.numbers {
        let opened = open::open_pack(&**disk, Life { volume_id, pack });
        let heads = match opened.and_then(|file| heads_in(&file.forgiving())) {
            // As good as not there; another image, or the log alone, will do.
            Err(Error::Io { .. }) => continue,
            heads => heads?,
        };
        for (offset, head, crc) in heads {
            parts.entry(head.image).or_default().push((pack, offset, head, crc));
        }
    }
    let mut found: Vec<FoundImage> = parts.into_values().filter_map(whole).collect();
    found.sort_by_key(|image| std::cmp::Reverse((image.head.position.sequence, image.head.image)));
    Ok(found)
}

/// Puts parts together, if they are all there.
fn whole(mut parts: Vec<(u64, u64, ImageHead, u32)>) -> Option<FoundImage> {
    parts.sort_by_key(|(_, _, head, _)| head.part);
    let last = parts.last()?.2;
    let mut running_crc = 0;
    for (number, (_, _, head, crc)) in parts.iter().enumerate() {
        running_crc = run_on(running_crc, *crc);
        let fits = head.part as usize == number
            && head.running_crc == running_crc
            && head.position == last.position
            && head.last == (number + 1 == parts.len());
        if !fits {
            return None;
        }
    }
    let parts = parts.into_iter().map(|(pack, offset, ..)| (pack, offset)).collect();
    Some(FoundImage { head: last, parts })
}

impl FoundImage {
    /// Reads the payloads of all parts in order; `None` from a part that is damaged.
    pub fn read<'a>(
        &'a self,
        disk: &'a Arc<dyn Disk>,
        volume_id: [u8; 16],
    ) -> impl Iterator<Item = Result<Option<Vec<u8>>>> + 'a {
        self.parts.iter().map(move |&(pack, offset)| {
            let opened = open::open_pack(&**disk, Life { volume_id, pack });
            match opened.and_then(|file| read_part(&file.forgiving(), offset)) {
                Err(Error::Io { .. }) => Ok(None),
                read => read,
            }
        })
    }
}

fn read_part(file: &PackFile, offset: u64) -> Result<Option<Vec<u8>>> {
    let action = Error::io("read an image of the metadata");
    let frames = match file.at(offset).map_err(&action)? {
        At::Frame(found) => vec![*found],
        // Its header is damaged; the footer repeats it.
        At::End | At::Invalid => file.frames(u64::MAX).map_err(&action)?.0,
    };
    let Some(found) = frames.iter().find(|found| found.offset == offset) else {
        return Ok(None);
    };
    let stored = file.payload(found).map_err(&action)?;
    if crc32c::crc32c(&stored) != found.header.payload_crc {
        return Ok(None);
    }
    Ok(frame::decompress(found.header.codec, &stored, found.header.raw_bytes))
}
