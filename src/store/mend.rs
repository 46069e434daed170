//! Putting back what of a sealed pack follows from the rest of it.
//!
//! Owns [`Store::mend`]. A pack says much twice: its header is known, the headers of its frames
//! stand in the footer too, the footer follows from the frames, and the frames of tree chunks may
//! have copies in another pack. Where one of the two is damaged, the same bytes are written again
//! in their place.
//!
//! Invariant: nothing is written but what was there before: each piece carries its checksum, and
//! the place decides its length.
//!
//! Absent on purpose: payloads of data. Lost chunks are stored anew, at the end of the log.

use super::frame::Kind;
use super::pack::{self, PACK_HEADER_BYTES, PackFile, PackHeader, PackKind};
use super::{Error, Inner, Result, Store, open};
use crate::sys::Access;

/// What was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// The header of a pack.
    PackHeader {
        /// The pack.
        pack: u64,
    },
    /// The header of a frame, from the footer.
    FrameHeader {
        /// The pack.
        pack: u64,
        /// Where the frame starts.
        offset: u64,
    },
    /// A frame of tree chunks, from its copy, or the copy from the frame.
    TreeFrame {
        /// The pack.
        pack: u64,
        /// Where the frame starts.
        offset: u64,
    },
    /// The footer of a pack, from its frames.
    Footer {
        /// The pack.
        pack: u64,
    },
}

impl std::fmt::Display for Mended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mended::PackHeader { pack } => write!(f, "the header of pack {pack:016x}"),
            Mended::FrameHeader { pack, offset } => {
                write!(f, "the header of the frame at {offset} of pack {pack:016x}")
            }
            Mended::TreeFrame { pack, offset } => {
                write!(f, "the tree chunks of the frame at {offset} of pack {pack:016x}")
            }
            Mended::Footer { pack } => write!(f, "the footer of pack {pack:016x}"),
        }
    }
}

impl Store {
    /// Writes again, durably, what is damaged in sealed packs and follows from what is not.
    pub fn mend(&self) -> Result<Vec<Mended>> {
        let inner = &self.inner;
        let (open_pack, next_number) = {
            let log = inner.log.lock();
            (log.open.as_ref().map_or(0, |open| open.number), log.next_number)
        };
        let mut mended = Vec::new();
        for number in open::list(&*inner.disk)?.numbers {
            if number != open_pack && number < next_number {
                inner.mend_pack(number, &mut mended)?;
            }
        }
        Ok(mended)
    }
}

impl Inner {
    fn mend_pack(&self, number: u64, mended: &mut Vec<Mended>) -> Result<()> {
        let read = Error::io("read a pack");
        let file = open::open_pack(&*self.disk, self.life(number))?.forgiving();
        if file.is_empty() {
            return Ok(());
        }
        let header = file.header().map_err(&read)?;
        let (frames, gaps) = file.walk(PACK_HEADER_BYTES, u64::MAX).map_err(&read)?;
        let mut pieces: Vec<(u64, Vec<u8>, Mended)> = Vec::new();
        // Records stand in packs of the log alone; of another kind it cannot be told which.
        let is_log = frames.iter().any(|found| matches!(found.header.kind, Kind::Record));
        if header == PackHeader::Damaged && is_log {
            let bytes = pack::encode_header(self.life(number), PackKind::Log).to_vec();
            pieces.push((0, bytes, Mended::PackHeader { pack: number }));
        }
        let mut trees: Vec<pack::Found> =
            frames.iter().filter(|found| is_tree(found)).cloned().collect();
        match file.footer().map_err(&read)? {
            Some(footer) => {
                for found in footer {
                    let offset = found.offset;
                    if gaps.iter().any(|gap| gap.contains(offset)) {
                        let what = Mended::FrameHeader { pack: number, offset };
                        pieces.push((offset, found.head.clone(), what));
                        trees.extend(is_tree(&found).then_some(found));
                    }
                }
            }
            None => {
                if let Some((offset, bytes)) = footer_of(&file, &frames) {
                    pieces.push((offset, bytes, Mended::Footer { pack: number }));
                }
            }
        }
        self.mend_trees(&file, &trees, &mut pieces)?;
        if pieces.is_empty() {
            return Ok(());
        }
        let action = "mend a pack";
        let writer = self.disk.open(&pack::pack_path(number), Access::Write);
        let writer = writer.map_err(Error::io(action))?;
        for (offset, bytes, what) in pieces {
            writer.write_all_at(&bytes, offset).map_err(Error::io(action))?;
            mended.push(what);
        }
        writer.sync().map_err(Error::io(action))
    }
}

impl Inner {
    /// Finds the payloads of tree frames that are damaged in the pack's twin.
    fn mend_trees(
        &self,
        file: &PackFile,
        trees: &[pack::Found],
        pieces: &mut Vec<(u64, Vec<u8>, Mended)>,
    ) -> Result<()> {
        let read = Error::io("read a pack");
        let mut others: Option<(PackFile, Vec<pack::Found>)> = None;
        for found in trees {
            if file.is_sound(found).map_err(&read)? {
                continue;
            }
            if others.is_none() {
                let Some(twin) = self.twin_of(file.life.pack)? else { return Ok(()) };
                let twin = twin.forgiving();
                let (frames, _) = twin.frames(u64::MAX).map_err(&read)?;
                others = Some((twin, frames));
            }
            let Some((twin, frames)) = &others else { return Ok(()) };
            let same = |other: &&pack::Found| {
                let (own, other) = (found, *other);
                is_tree(other)
                    && own.header.payload_crc == other.header.payload_crc
                    && own.list() == other.list()
            };
            let Some(other) = frames.iter().find(same) else { continue };
            if twin.is_sound(other).map_err(&read)? {
                let payload = twin.payload(other).map_err(&read)?;
                let (pack, offset) = (file.life.pack, found.offset);
                let at = offset + found.header.head_bytes();
                pieces.push((at, payload, Mended::TreeFrame { pack, offset }));
            }
        }
        Ok(())
    }
}

fn is_tree(found: &pack::Found) -> bool {
    found.header.kind == Kind::Tree
}

/// Builds the footer again: when the frames lie without a gap up to it, and it ends where the file
/// does.
fn footer_of(file: &PackFile, frames: &[pack::Found]) -> Option<(u64, Vec<u8>)> {
    let mut payload = Vec::new();
    let mut end = PACK_HEADER_BYTES;
    for found in frames.iter().filter(|found| found.header.kind != Kind::Footer) {
        if found.offset != end {
            return None;
        }
        pack::footer_push(&mut payload, found.offset, &found.head);
        end = found.end();
    }
    let (bytes, _) = pack::encode_footer(file.life, end, &payload);
    (end + bytes.len() as u64 == file.len).then_some((end, bytes))
}
