//! The metadata made again from the packs, when `meta/` is lost or damaged.
//!
//! Owns [`rebuild_metadata`]: the newest whole image, the commit records behind it, and the
//! exchange of the new checkpoint for the old one.
//!
//! Invariants: (1) the new checkpoint ends at the record that opening would take for the last; (2)
//! the packs are only read, and the old checkpoint is set aside, never removed; (3) a crash leaves
//! the old checkpoint, the new one, or none, and then the same can be done again.
//!
//! Absent on purpose: the lock, which the caller holds.

use std::sync::Arc;

use super::{Error, Superblock};
use crate::meta::{self, Meta, Rebuild};
use crate::store::{self, Finding, FoundImage, LogPosition};
use crate::sys::Disk;
use crate::sys::overlay::OverlayDisk;

/// What was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// The sequence number of the last commit record that the image has; none without an image.
    pub image: Option<u64>,
    /// Commit records that were read behind it.
    pub records: u64,
    /// The sequence number of the last commit record.
    pub sequence: u64,
    /// Where the old checkpoint lies now, if there was one.
    pub aside: Option<String>,
    /// Commit records that could not be had: what they changed is as it was before them.
    pub findings: Vec<Finding>,
}

/// Says why the metadata cannot be used, if that is so; reads all of it and changes nothing.
pub fn metadata_damage(disk: &Arc<dyn Disk>) -> Result<Option<meta::Error>, Error> {
    let overlay: Arc<dyn Disk> = Arc::new(OverlayDisk::new(Arc::clone(disk)));
    match Meta::probe(&overlay) {
        Ok(()) => Ok(None),
        Err(error @ (meta::Error::Missing | meta::Error::Damaged { .. })) => Ok(Some(error)),
        // A sector that cannot be read any more.
        Err(error @ meta::Error::Io { .. }) if is_lost_sector(&error) => Ok(Some(error)),
        Err(error) => Err(error.into()),
    }
}

fn is_lost_sector(error: &meta::Error) -> bool {
    match error {
        meta::Error::Io { source, .. } => source.raw_os_error() == Some(libc::EIO),
        _ => false,
    }
}

/// Makes the metadata again. The caller holds the volume's lock, and nobody has it open.
///
/// # Errors
///
/// [`Error::NothingToRebuild`] when the packs have neither an image nor a record. The old
/// metadata is as it was after any error but one of the exchange itself.
pub fn rebuild_metadata(disk: &Arc<dyn Disk>) -> Result<Rebuilt, Error> {
    let volume_id = Superblock::read(disk.as_ref())?.uuid;
    let (rebuild, image) = from_image(disk, volume_id)?;
    let from = image.as_ref().map_or(LogPosition::default(), |image| image.head.position);
    let (mut records, mut unreadable) = (0, Vec::new());
    let (end, mut findings) = store::replay(disk, volume_id, from, &mut |record| {
        match rebuild.meta.replay(record) {
            Err(meta::Error::Record { position, .. }) => {
                unreadable.push(Finding::RecordMissing { sequence: position.sequence });
            }
            replayed => replayed?,
        }
        records += 1;
        Ok::<(), Error>(())
    })?;
    findings.extend(unreadable);
    if end.sequence == 0 {
        return Err(Error::NothingToRebuild);
    }
    let aside = rebuild.finish(end)?;
    let image = image.map(|image| image.head.position.sequence);
    Ok(Rebuilt { image, records, sequence: end.sequence, aside, findings })
}

/// Begins with the newest image of which all parts are sound; without one, with nothing.
fn from_image(
    disk: &Arc<dyn Disk>,
    volume_id: [u8; 16],
) -> Result<(Rebuild, Option<FoundImage>), Error> {
    for image in store::find_images(disk, volume_id)? {
        let rebuild = Rebuild::begin(disk)?;
        if restore(&rebuild, disk, volume_id, &image)? {
            return Ok((rebuild, Some(image)));
        }
    }
    Ok((Rebuild::begin(disk)?, None))
}

/// Takes in all parts of an image; false when one of them is damaged.
fn restore(
    rebuild: &Rebuild,
    disk: &Arc<dyn Disk>,
    volume_id: [u8; 16],
    image: &FoundImage,
) -> Result<bool, Error> {
    for part in image.read(disk, volume_id) {
        let Some(body) = part? else { return Ok(false) };
        match rebuild.restore(&body) {
            Err(meta::Error::Image { .. }) => return Ok(false),
            restored => restored?,
        }
    }
    rebuild.restored(image.head.position, image.head.record_bytes)?;
    Ok(true)
}
