"""Everything that shows what happens: subscribers to RotationEvents. They never change anything."""
