//! Extended attributes of the namespaces `user`, `trusted` and `security`.
//!
//! Absent on purpose: `system`, with the ACLs: nobody would judge them here, and an ACL that is
//! kept without effect would promise what does not hold.

use std::ops::ControlFlow;

use super::{
    Error, MODE_DIR, MODE_TYPE, Volume, Wait, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
    XattrMode,
};
use crate::meta::{Ino, Inode, Key, KeyRange};

/// Most bytes that the names of one inode's attributes may have together: the kernel lists no
/// more (XATTR_LIST_MAX).
const XATTR_LIST_BYTES_MAX: usize = 65536;

/// What names of attributes that can be set begin with.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

impl Volume {
    /// Returns the value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        self.check_open()?;
        check_name(name)?;
        match self.meta.get(&Key::Xattr { ino, name })? {
            Some(value) => Ok(value),
            None => Err(Error::NoAttribute),
        }
    }

    /// Returns the names of an inode's extended attributes, sorted.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
        self.check_open()?;
        self.inode(ino)?;
        let mut names = Vec::new();
        let mut failure = None;
        self.meta.scan(KeyRange::xattrs(ino), &mut |key, _| match Key::decode(key) {
            Ok(Key::Xattr { name, .. }) => {
                names.push(name.to_vec());
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(names),
        }
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        wait: Wait,
    ) -> Result<(), Error> {
        check_name(name)?;
        if !NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) {
            return Err(Error::Unsupported);
        }
        if XATTR_VALUE_BYTES_MAX < value.len() {
            return Err(Error::AttributeTooLarge);
        }
        self.begin_change(wait)?;
        self.change_xattr(ino, |volume, inode| {
            let exists = volume.meta.get(&Key::Xattr { ino, name })?.is_some();
            match mode {
                XattrMode::Create if exists => return Err(Error::Exists),
                XattrMode::Replace if !exists => return Err(Error::NoAttribute),
                _ => {}
            }
            let listed: usize = volume.listxattr(ino)?.iter().map(|name| name.len() + 1).sum();
            if !exists && XATTR_LIST_BYTES_MAX < listed + name.len() + 1 {
                return Err(Error::AttributeTooLarge);
            }
            let group = volume.meta.enter();
            group.put(&Key::Xattr { ino, name }, value.to_vec());
            group.put(&Key::Inode(ino), inode.encode());
            Ok(())
        })
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8], wait: Wait) -> Result<(), Error> {
        check_name(name)?;
        self.begin_change(wait)?;
        self.change_xattr(ino, |volume, inode| {
            if volume.meta.get(&Key::Xattr { ino, name })?.is_none() {
                return Err(Error::NoAttribute);
            }
            let group = volume.meta.enter();
            group.delete(&Key::Xattr { ino, name });
            group.put(&Key::Inode(ino), inode.encode());
            Ok(())
        })
    }

    /// Runs `change` under the lock of the inode's entry, with a new ctime in the entry.
    fn change_xattr(
        &self,
        ino: Ino,
        change: impl FnOnce(&Volume, &Inode) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.inode(ino)?.mode & MODE_TYPE == MODE_DIR {
            let _namespace = self.namespace.write();
            let inode = Inode { ctime: self.clock.now(), ..self.inode(ino)? };
            return change(self, &inode);
        }
        let node = self.nodes.get(ino);
        let changed = {
            let mut state = node.state.lock();
            state.no_capability = false;
            self.inode(ino)
                .and_then(|inode| change(self, &Inode { ctime: self.clock.now(), ..inode }))
        };
        self.nodes.put(node);
        changed
    }
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    match name.len() {
        0 => Err(Error::Invalid { what: "an extended attribute needs a name" }),
        length if XATTR_NAME_BYTES_MAX < length => Err(Error::NameTooLong),
        _ => Ok(()),
    }
}
