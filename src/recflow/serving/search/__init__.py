"""A query and a shopper -> what was meant, in the order that this shopper wants; a prefix -> how it may go on."""
