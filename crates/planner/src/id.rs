//! Dense numbers for the objects of one [`Fleet`](crate::Fleet).
//!
//! They are positions, valid only for the fleet they came from. Whatever is stored or shown uses names.

macro_rules! id_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub(crate) u32);

        impl $type {
            /// The position in the fleet's list.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id_type!(
    /// A host of one fleet.
    HostId
);
id_type!(
    /// An availability set of one fleet.
    SetId
);
id_type!(
    /// A VM of one fleet.
    VmId
);
id_type!(
    /// An interned text of one fleet: a rack, a zone, a label's key or value.
    TextId
);
