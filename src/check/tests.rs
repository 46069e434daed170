//! A check finds nothing in a volume in order, and each kind of damage that is made here.

use super::*;
