//! Figures about a volume.

use super::{Error, FORMAT_VERSION, Status, Volume, compression_text, hash_text};

impl Volume {
    /// Returns figures as they stand: what is dirty is not counted among what is stored.
    ///
    /// `mounted` is false here; the daemon sets it.
    pub fn status(&self) -> Result<Status, Error> {
        self.check_open()?;
        let store = self.store.stats();
        let counters = self.counters.lock();
        let (files, logical_bytes) = (counters.files, counters.logical_bytes());
        drop(counters);
        let metadata_bytes = self.meta.stored_bytes();
        let used = self.disk.used_bytes();
        Ok(Status {
            uuid: self.superblock.uuid_text(),
            format: FORMAT_VERSION,
            branches: self.superblock.profile.branches,
            hash: hash_text(self.superblock.profile.hash).to_owned(),
            compression: compression_text(self.superblock.compression),
            mounted: false,
            poisoned: self.commits.is_poisoned(),
            files,
            logical_bytes,
            unique_bytes: store.unique_bytes,
            chunks: store.chunks,
            stored_bytes: store.stored_bytes + store.index_bytes + metadata_bytes,
            pack_bytes: store.stored_bytes,
            metadata_bytes,
            index_bytes: store.index_bytes,
            physical_bytes: used
                .map_err(|source| Error::Io { action: "measure the volume's directory", source })?,
            reserve_bytes: self.space.reserve.bytes(),
            quota_bytes: Some(self.quota_bytes()).filter(|&bytes| bytes != 0),
            available_bytes: self.statfs()?.available_bytes,
            garbage_bytes: Some(self.garbage_estimate()),
            commits: store.sequence,
            dirty_bytes: self.budget.used(),
            shared_copy_bytes: self.copies.shared_bytes(),
            unshared_copies: self.copies.unshared(),
        })
    }
}
