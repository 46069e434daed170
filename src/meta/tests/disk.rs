//! A disk in memory: just enough for a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::sys::{Access, DirEntry, Disk, DiskFile, DiskLock, Space};

#[derive(Default)]
pub(super) struct MemDisk {
    files: Mutex<BTreeMap<String, Arc<MemFile>>>,
}

#[derive(Default)]
struct MemFile {
    bytes: Mutex<Vec<u8>>,
}

impl Disk for MemDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock();
        let file = match (files.get(path), access) {
            (None, Access::CreateNew) => files.entry(path.to_owned()).or_default().clone(),
            (Some(file), Access::Read | Access::Write) => file.clone(),
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
            (Some(_), _) => return Err(io::ErrorKind::AlreadyExists.into()),
        };
        Ok(file)
    }
    fn create_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn read_dir(&self, _: &str) -> io::Result<Vec<DirEntry>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.files.lock().remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn lock(&self, _: &str) -> io::Result<Box<dyn DiskLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn space(&self) -> io::Result<Space> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn used_bytes(&self) -> io::Result<u64> {
        Ok(self.files.lock().values().map(|file| file.bytes.lock().len() as u64).sum())
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.lock();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        let end = offset as usize + buf.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().resize(len as usize, 0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn drop_cached(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
