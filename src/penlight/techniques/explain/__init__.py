"""What in this input caused it?"""
