//! Images of the metadata: when one is made, and how it gets its name.
//!
//! An image is written to aux packs from the checkpoint, which holds all entries at one position of
//! the log, and then named by an entry of an ordinary group. It is due once the commit records
//! since the last one have as many bytes as that one had: what images cost stays below what
//! records cost, and a rebuild reads at most about two images' worth.
//!
//! Invariants: (1) older images go only once the newer one is named by a durable commit, and holds
//! all that they hold; (2) a failure harms nothing: without a new image more records are read.
//!
//! Absent on purpose: the way back (`rebuild`).

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::{Error, Volume, Wait};
use crate::meta::{Image, Key, KeyRange, Meta};
use crate::store::IMAGE_PART_BYTES;

/// The numbers of all images that are named, and the last of them.
fn named_images(meta: &Meta) -> Result<(Vec<u64>, Option<Image>), Error> {
    let (mut numbers, mut last) = (Vec::new(), None::<Image>);
    meta.scan(KeyRange::images(), &mut |key, value| {
        if let Ok(Key::Image(number)) = Key::decode(key) {
            numbers.push(number);
            // One that cannot be read counts for nothing: the next one is made the sooner.
            let image = Image::decode(value).ok();
            let is_newer = |image: &Image| {
                last.as_ref().is_none_or(|last: &Image| last.position <= image.position)
            };
            last = image.filter(is_newer).or(last.take());
        }
        ControlFlow::Continue(())
    })?;
    Ok((numbers, last))
}

/// The newest image that is named.
pub(super) fn newest_image(meta: &Meta) -> Result<Option<Image>, Error> {
    Ok(named_images(meta)?.1)
}

/// How many bytes of commit records there will be when the next image is due.
pub(super) fn next_due(meta: &Meta, bytes_min: u64) -> Result<u64, Error> {
    let last = named_images(meta)?.1.unwrap_or_default();
    Ok(last.record_bytes.saturating_add(last.bytes.max(bytes_min)))
}

impl Volume {
    pub(super) fn image_is_due(&self) -> bool {
        self.image_due_at.load(Ordering::Acquire) <= self.meta.record_bytes()
    }

    /// Makes an image if one is due; after a failure not again before some more records.
    pub(super) fn keep_image(&self) -> Result<(), Error> {
        if !self.image_is_due() {
            return Ok(());
        }
        let made = self.make_image();
        let due = match &made {
            Ok(()) => next_due(&self.meta, self.options.image_bytes_min)?,
            Err(_) => self.meta.record_bytes().saturating_add(self.options.image_bytes_min),
        };
        self.image_due_at.store(due, Ordering::Release);
        made
    }

    pub(super) fn make_image(&self) -> Result<(), Error> {
        self.take_in();
        self.commits.check_poison()?;
        let mut reader = self.meta.image()?;
        let (position, record_bytes) = (reader.position(), reader.record_bytes());
        let mut writer = self.store.image_writer(position, record_bytes);
        while let Some(part) = reader.next(IMAGE_PART_BYTES)? {
            writer.part(part.entries, &part.body, part.last)?;
        }
        // It keeps the pages that are replaced from being used again.
        drop(reader);
        let written = writer.finish()?;
        let older = named_images(&self.meta)?.0;
        let image = Image { position, record_bytes, bytes: written.bytes, packs: written.packs };
        self.make_group_room(Wait::Yes)?;
        {
            let group = self.meta.enter();
            older.into_iter().for_each(|number| group.delete(&Key::Image(number)));
            group.put(&Key::Image(written.image), image.encode());
        }
        self.commit_all()?;
        Ok(self.store.remove_other_images(written.image, position)?)
    }
}
