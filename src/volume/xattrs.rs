//! Extended attributes of the namespaces `user`, `trusted` and `security`, and the access control
//! lists in `system`.
//!
//! Who may set what, the kernel judges. Other names in `system` mean nothing here.

use std::ops::ControlFlow;

use super::acl::{ACCESS, Acl, DEFAULT};
use super::flags::check_attributes;
use super::{
    Error, MODE_DIR, MODE_SET_GID, MODE_SYMLINK, MODE_TYPE, Volume, Wait, XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX, XattrMode,
};
use crate::meta::{Ino, Inode, Key, KeyRange, Reading};

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
        if let Some(value) = self.old_xattr(ino, name) {
            return value;
        }
        match self.meta.get(&Key::Xattr { ino, name })? {
            Some(value) => Ok(value),
            None => Err(Error::NoAttribute),
        }
    }

    /// Returns the names of an inode's extended attributes, sorted.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
        self.check_open()?;
        if let Some(names) = self.old_xattrs(ino) {
            return names;
        }
        self.inode(ino)?;
        list_in(&self.meta, ino)
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
        if is_acl(name) {
            return self.set_acl(ino, name, value, false, wait);
        }
        if NAMESPACES.contains(&name) {
            return Err(Error::Invalid { what: "an extended attribute needs a name of its own" });
        }
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

    /// Sets an access control list, in the attribute `name`. One that a mode can say leaves
    /// nothing but the mode.
    ///
    /// `clear_set_gid` says that the caller is not in the inode's group: an access list that he
    /// sets takes the set-group-id bit away, as a chmod of his would.
    pub fn set_acl(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        clear_set_gid: bool,
        wait: Wait,
    ) -> Result<(), Error> {
        let acl = Acl::decode(value)?;
        self.begin_change(wait)?;
        self.change_xattr(ino, |volume, inode| {
            let mut inode = inode.clone();
            match inode.mode & MODE_TYPE {
                MODE_SYMLINK => return Err(Error::Unsupported),
                mode_type if name == DEFAULT && mode_type != MODE_DIR => {
                    return Err(Error::NotPermitted);
                }
                _ => {}
            }
            let access = name == ACCESS;
            if access {
                inode.mode = inode.mode & !0o777 | acl.permissions();
                inode.mode &= if clear_set_gid { !MODE_SET_GID } else { !0 };
            }
            let group = volume.meta.enter();
            if access && acl.is_mode() {
                group.delete(&Key::Xattr { ino, name });
            } else {
                group.put(&Key::Xattr { ino, name }, value.to_vec());
            }
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
        let is_dir = self.inode(ino)?.mode & MODE_TYPE == MODE_DIR;
        let _namespace = is_dir.then(|| self.namespace.write());
        let node = self.nodes.get(ino);
        let changed = {
            let mut state = node.state.lock();
            (state.no_capability, state.no_default_acl) = (false, false);
            self.inode(ino).and_then(|inode| {
                check_attributes(&inode)?;
                change(self, &Inode { ctime: self.clock.now(), ..inode })
            })
        };
        self.nodes.put(node);
        changed
    }
}

/// The names of an inode's extended attributes, sorted.
pub(super) fn list_in(meta: &dyn Reading, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
    let mut names = Vec::new();
    let mut failure = None;
    meta.scan(KeyRange::xattrs(ino), &mut |key, _| match Key::decode(key) {
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

/// Whether an attribute holds an access control list.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    match name.len() {
        0 => Err(Error::Invalid { what: "an extended attribute needs a name" }),
        length if XATTR_NAME_BYTES_MAX < length => Err(Error::NameTooLong),
        // Old versions are found in the order of their names.
        _ if name.contains(&0) => Err(Error::Invalid { what: "a name has no NUL" }),
        _ => Ok(()),
    }
}
